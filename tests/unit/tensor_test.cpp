// The room tensor: element types, sizes that do not overflow, rectangles.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "weightcast/tensor/dtype.hpp"
#include "weightcast/tensor/slice.hpp"
#include "weightcast/tensor/tensor_info.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();

// The table of the safetensors format.
const std::array<std::pair<const char*, int>, dtype_count> all_dtypes = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

TEST(DTypes, AllOfTheFormatByName) {
  std::set<DType> seen;
  for (const auto& [text, width] : all_dtypes) {
    const auto dtype = dtype_from_name(text);
    ASSERT_TRUE(dtype) << text;
    EXPECT_EQ(name(*dtype), text);
    EXPECT_EQ(bits(*dtype), width) << text;
    seen.insert(*dtype);
  }
  EXPECT_EQ(seen.size(), 22u);
}

TEST(DTypes, OtherNamesAreNone) {
  for (const char* text : {"", "bf16", "Bf16", "BF16 ", " BF16", "bfloat16", "F8", "F128", "BF", "U", "F6"})
    EXPECT_EQ(dtype_from_name(text), std::nullopt) << text;
}

/// The value of every bit pattern of a format with an implicit leading bit, by counting up from zero: each pattern is
/// one unit in the last place above the one before it.
void check_all_patterns(DType dtype, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned infinity = ((1u << exponent_bits) - 1) << fraction_bits, sign = 0x8000;
  double value = 0;
  for (unsigned pattern = 0; pattern < sign; ++pattern) {
    for (const unsigned whole : {pattern, pattern | sign}) {
      const auto element = static_cast<std::uint16_t>(whole);
      const auto read = to_float(dtype, &element);
      ASSERT_TRUE(read);
      if (pattern > infinity) {
        ASSERT_TRUE(std::isnan(*read)) << whole;
        continue;
      }
      const double expected = pattern == infinity ? std::numeric_limits<double>::infinity() : value;
      ASSERT_EQ(static_cast<double>(*read), whole == pattern ? expected : -expected) << whole;
      ASSERT_EQ(std::signbit(*read), whole != pattern) << whole;
    }
    const int exponent = std::max(static_cast<int>(pattern >> fraction_bits), 1);
    value += std::ldexp(1.0, exponent - bias - fraction_bits);
  }
}

TEST(ToFloat, EveryPatternOfF16) {
  check_all_patterns(DType::F16, 5, 10);
  const std::uint16_t one = 0x3c00, most = 0x7bff, least = 1;
  EXPECT_EQ(to_float(DType::F16, &one), 1.0f);
  EXPECT_EQ(to_float(DType::F16, &most), 65504.0f);
  EXPECT_EQ(to_float(DType::F16, &least), 0x1p-24f);
}

TEST(ToFloat, EveryPatternOfBf16) {
  check_all_patterns(DType::BF16, 8, 7);
  const std::uint16_t one = 0x3f80, pi = 0x4049;
  EXPECT_EQ(to_float(DType::BF16, &one), 1.0f);
  EXPECT_EQ(to_float(DType::BF16, &pi), 3.140625f);
}

TEST(ToFloat, EveryPatternOfF8) {
  for (int pattern = 0; pattern < 0x80; ++pattern) {
    for (const int sign : {0, 0x80}) {
      const auto byte = static_cast<std::uint8_t>(pattern | sign);
      const float e4m3 = to_float(DType::F8_E4M3, &byte).value(), e5m2 = to_float(DType::F8_E5M2, &byte).value();
      const auto half = static_cast<std::uint16_t>(byte << 8);
      const float widened = to_float(DType::F16, &half).value();
      ASSERT_TRUE(e5m2 == widened || (std::isnan(e5m2) && std::isnan(widened))) << pattern;
      if (pattern == 0x7f) {
        ASSERT_TRUE(std::isnan(e4m3));
        continue;
      }
      // A step is 2^-9 up to 2^-5, and twice as much from each power of two on.
      double expected = 0;
      for (int below = 0; below < pattern; ++below) expected += std::ldexp(1.0, std::max(below / 8, 1) - 10);
      ASSERT_EQ(static_cast<double>(e4m3), sign == 0 ? expected : -expected) << pattern;
      ASSERT_EQ(std::signbit(e4m3), sign != 0) << pattern;
    }
  }
  const std::uint8_t most = 0x7e, one = 0x38, e5m2_most = 0x7b;
  EXPECT_EQ(to_float(DType::F8_E4M3, &most), 448.0f);
  EXPECT_EQ(to_float(DType::F8_E4M3, &one), 1.0f);
  EXPECT_EQ(to_float(DType::F8_E5M2, &e5m2_most), 57344.0f);
}

TEST(ToFloat, WiderTypesAtAnyAlignment) {
  std::array<std::byte, 16> room{};
  const float single = -1.25e-30f;
  const double exact = 0.1, too_large = 1e300;
  for (std::size_t shift = 0; shift < 8; ++shift) {
    std::memcpy(room.data() + shift, &single, sizeof single);
    EXPECT_EQ(to_float(DType::F32, room.data() + shift), single);
    std::memcpy(room.data() + shift, &exact, sizeof exact);
    EXPECT_EQ(to_float(DType::F64, room.data() + shift), 0.1f);
  }
  EXPECT_EQ(to_float(DType::F64, &too_large), std::numeric_limits<float>::infinity());
}

TEST(ToFloat, NothingForOtherTypes) {
  const std::uint64_t element = 0;
  const std::set<std::string_view> floats = {"F8_E4M3", "F8_E5M2", "BF16", "F16", "F32", "F64"};
  for (const auto& [text, width] : all_dtypes) {
    EXPECT_EQ(to_float(dtype_from_name(text).value(), &element).has_value(), floats.contains(text)) << text;
  }
}

TEST(TensorInfo, Sizes) {
  EXPECT_EQ((TensorInfo{"scalar", DType::F32, {}}.elements()), 1u);
  EXPECT_EQ((TensorInfo{"scalar", DType::F32, {}}.size_bytes()), 4u);
  EXPECT_EQ((TensorInfo{"matrix", DType::BF16, {2048, 512}}.elements()), 1048576u);
  EXPECT_EQ((TensorInfo{"matrix", DType::BF16, {2048, 512}}.size_bytes()), 2097152u);
  EXPECT_EQ((TensorInfo{"none", DType::F64, {3, 0, 5}}.size_bytes()), 0u);
  EXPECT_EQ((TensorInfo{"none", DType::F64, {0, largest, largest}}.elements()), 0u);
}

TEST(TensorInfo, SubByteElementsMustFillBytes) {
  EXPECT_EQ((TensorInfo{"a", DType::F4, {4}}.size_bytes()), 2u);
  EXPECT_EQ((TensorInfo{"a", DType::F4, {3}}.size_bytes()), std::nullopt);
  EXPECT_EQ((TensorInfo{"a", DType::F6_E2M3, {4}}.size_bytes()), 3u);
  EXPECT_EQ((TensorInfo{"a", DType::F6_E3M2, {2}}.size_bytes()), std::nullopt);
  EXPECT_EQ((TensorInfo{"a", DType::F4, {3}}.elements()), 3u);
}

TEST(TensorInfo, OverflowIsNothing) {
  EXPECT_EQ((TensorInfo{"a", DType::U8, {1ULL << 32, 1ULL << 32}}.elements()), std::nullopt);
  EXPECT_EQ((TensorInfo{"a", DType::U8, {1ULL << 32, 1ULL << 32}}.size_bytes()), std::nullopt);
  EXPECT_EQ((TensorInfo{"a", DType::U8, {3, largest / 2}}.elements()), std::nullopt);
  EXPECT_EQ((TensorInfo{"a", DType::F64, {1ULL << 57}}.size_bytes()), 1ULL << 60);
  EXPECT_EQ((TensorInfo{"a", DType::F64, {1ULL << 61}}.elements()), 1ULL << 61);
  EXPECT_EQ((TensorInfo{"a", DType::F64, {1ULL << 61}}.size_bytes()), std::nullopt);
}

TEST(TensorInfo, InWords) {
  EXPECT_EQ((TensorInfo{"a", DType::BF16, {2048, 512}}.describe()), "BF16 [2048, 512]");
  EXPECT_EQ((TensorInfo{"a", DType::F8_E4M3, {7}}.describe()), "F8_E4M3 [7]");
  EXPECT_EQ((TensorInfo{"a", DType::F32, {}}.describe()), "F32 []");
}

TEST(Slice, WithinBySetOfElements) {
  const MatrixShape shape{3, 2};
  for (std::uint64_t row = 0; row < 6; ++row) {
    for (std::uint64_t rows = 0; rows < 6; ++rows) {
      for (std::uint64_t column = 0; column < 5; ++column) {
        for (std::uint64_t columns = 0; columns < 5; ++columns) {
          const Slice slice{row, column, rows, columns};
          EXPECT_EQ(slice.within(shape), row + rows <= 3 && column + columns <= 2);
          EXPECT_EQ(slice.empty(), rows * columns == 0);
        }
      }
    }
  }
}

TEST(Slice, WithinDoesNotWrapAround) {
  EXPECT_FALSE((Slice{largest, 0, 2, 1}.within({3, 3})));
  EXPECT_FALSE((Slice{2, 0, largest, 1}.within({3, 3})));
  EXPECT_FALSE((Slice{0, largest, 1, 2}.within({3, 3})));
  EXPECT_FALSE((Slice{0, 2, 1, largest}.within({3, 3})));
  EXPECT_TRUE((Slice{0, 0, largest, largest}.within({largest, largest})));
  EXPECT_FALSE((Slice{1, 0, largest, largest}.within({largest, largest})));
}

}  // namespace
}  // namespace weightcast
