// Rounding to 16-bit floats, held against every value that the narrow type has, and everything just beside the middles.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "weightcast/device/elements.hpp"
#include "weightcast/tensor/dtype.hpp"

namespace weightcast {
namespace {

struct Format {
  NarrowFloat format;
  DType dtype;
  std::uint16_t infinity;
  double after_largest;  ///< where the next value would be, were there no infinity
};

class Narrow : public testing::TestWithParam<Format> {
 protected:
  static std::uint16_t rounded(std::uint32_t bits) { return narrow(GetParam().format, bits); }
  /// The float that these bits of the narrow type stand for.
  static float value(std::uint16_t narrow_bits) { return to_float(GetParam().dtype, &narrow_bits).value(); }
};

constexpr std::uint32_t sign_bit = 0x80000000, infinity_bits = 0x7f800000;

TEST_P(Narrow, EveryValueAndBothSidesOfEveryMiddle) {
  for (std::uint16_t low = 0; low < GetParam().infinity; ++low) {
    const auto high = static_cast<std::uint16_t>(low + 1);
    const auto below = std::bit_cast<std::uint32_t>(value(low));
    const double above = high == GetParam().infinity ? GetParam().after_largest : double{value(high)};
    const auto middle_value = static_cast<float>((double{value(low)} + above) / 2);
    const auto middle = std::bit_cast<std::uint32_t>(middle_value);
    for (const std::uint32_t sign : {0U, sign_bit}) {
      const auto signed_low = static_cast<std::uint16_t>(low | sign >> 16);
      const auto signed_high = static_cast<std::uint16_t>(high | sign >> 16);
      ASSERT_EQ(rounded(below | sign), signed_low) << low;
      ASSERT_EQ(rounded((below + 1) | sign), signed_low) << low;
      ASSERT_EQ(rounded((middle - 1) | sign), signed_low) << low;
      ASSERT_EQ(rounded(middle | sign), low % 2 == 0 ? signed_low : signed_high) << low;
      ASSERT_EQ(rounded((middle + 1) | sign), signed_high) << low;
    }
  }
}

TEST_P(Narrow, BetweenTheMiddlesNothingElseHappens) {
  std::mt19937 random(1);
  for (int i = 0; i < 2'000'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random()) & ~sign_bit;
    if (bits >= infinity_bits) continue;
    // Never beyond a neighbour: rounding keeps the order.
    const auto here = rounded(bits);
    ASSERT_LE(rounded(bits == 0 ? 0 : bits - 1), here) << bits;
    ASSERT_GE(rounded(bits + 1), here) << bits;
  }
}

TEST_P(Narrow, InfinityStaysAndNanStaysNan) {
  const auto infinity = GetParam().infinity;
  EXPECT_EQ(rounded(infinity_bits), infinity);
  EXPECT_EQ(rounded(infinity_bits | sign_bit), infinity | 0x8000);
  EXPECT_EQ(rounded(0x7f7fffff), infinity) << "the largest float";
  for (int bit = 0; bit < 23; ++bit) {
    for (const std::uint32_t payload : {1U << bit, (1U << (bit + 1)) - 1, 0x7fffffU & ~(1U << bit)}) {
      for (const std::uint32_t sign : {0U, sign_bit}) {
        const auto result = rounded(sign | infinity_bits | payload);
        ASSERT_GT(result & 0x7fff, infinity) << std::hex << payload;
        ASSERT_EQ(result & 0x8000, sign >> 16);
      }
    }
  }
}

TEST_P(Narrow, RangesOfAnyLengthAndAlignment) {
  std::mt19937 random(2);
  std::vector<std::byte> source(4 * 300 + 3);
  for (auto& byte : source) byte = static_cast<std::byte>(random());
  for (std::size_t count = 0; count < 290; count += 1 + count / 20) {
    for (const std::size_t shift : {0, 1, 2, 3}) {
      std::vector<std::byte> destination(2 * count + 8, std::byte{0x5a});
      narrow(GetParam().format, destination.data() + shift, source.data() + shift, count);
      for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t bits = 0;
        std::uint16_t held = 0;
        std::memcpy(&bits, source.data() + shift + 4 * i, 4);
        std::memcpy(&held, destination.data() + shift + 2 * i, 2);
        ASSERT_EQ(held, rounded(bits)) << count << " " << i;
      }
      for (auto i = shift + 2 * count; i < destination.size(); ++i) ASSERT_EQ(destination[i], std::byte{0x5a});
    }
  }
}

TEST(Narrow16, EveryValueOfOneTypeToTheOther) {
  const struct {
    WideFloat from;
    NarrowFloat to;
    DType given, wire;
  } ways[] = {{WideFloat::f16, NarrowFloat::bf16, DType::F16, DType::BF16},
              {WideFloat::bf16, NarrowFloat::f16, DType::BF16, DType::F16},
              {WideFloat::f16, NarrowFloat::f16, DType::F16, DType::F16},
              {WideFloat::bf16, NarrowFloat::bf16, DType::BF16, DType::BF16}};
  std::vector<std::uint16_t> source(0x10000), result(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::uint16_t>(i);
  for (const auto& way : ways) {
    narrow(way.to, reinterpret_cast<std::byte*>(result.data()), reinterpret_cast<const std::byte*>(source.data()),
           source.size(), way.from);
    for (std::size_t i = 0; i < source.size(); ++i) {
      const float exact = to_float(way.given, &source[i]).value(), got = to_float(way.wire, &result[i]).value();
      if (std::isnan(exact)) {
        ASSERT_TRUE(std::isnan(got)) << i;
        ASSERT_EQ((source[i] ^ result[i]) & 0x8000, 0) << i;
      } else {
        ASSERT_EQ(result[i], narrow(way.to, std::bit_cast<std::uint32_t>(exact))) << i;
        ASSERT_TRUE(way.given != way.wire || result[i] == source[i]) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bf16, Narrow, testing::Values(Format{NarrowFloat::bf16, DType::BF16, 0x7f80, 0x1p128}),
                         [](const auto&) { return "to"; });
INSTANTIATE_TEST_SUITE_P(F16, Narrow, testing::Values(Format{NarrowFloat::f16, DType::F16, 0x7c00, 0x1p16}),
                         [](const auto&) { return "to"; });

}  // namespace
}  // namespace weightcast
