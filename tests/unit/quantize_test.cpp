// Quantisation to fp8, held against the definition in quantize.md: the nearest of all values, in exact arithmetic.
#include "weightcast/device/quantize.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "harness/random_matrix.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/tensor/dtype.hpp"

namespace weightcast {
namespace {

using harness::RandomMatrix;

constexpr std::uint8_t largest = 0x7e, nan_bits = 0x7f;

std::uint32_t bits_of(float value) {
  return std::bit_cast<std::uint32_t>(value);
}

/// The values without sign, by their bits.
const std::array<double, largest + 1>& values() {
  static const auto all = [] {
    std::array<double, largest + 1> made{};
    for (std::uint8_t i = 0; i <= largest; ++i) made[i] = to_float(DType::F8_E4M3, &i).value();
    return made;
  }();
  return all;
}

/// Half way between a value and the next one.
double middle(std::uint8_t low) {
  return (values()[low] + values()[low + 1]) / 2;
}

/// The bits of the value that is nearest to a number, of two the even one.
std::uint8_t nearest(float number) {
  const std::uint8_t sign = std::signbit(number) ? 0x80 : 0;
  if (std::isnan(number)) return sign | nan_bits;
  const double magnitude = std::abs(double{number});
  std::uint8_t low = 0, high = largest;  // the greatest whose middle is not above the number
  while (low < high) {
    const auto mid = static_cast<std::uint8_t>((low + high) / 2);
    const double after = middle(mid);
    const bool beyond = magnitude > after || (magnitude == after && mid % 2 == 1);
    (beyond ? low : high) = static_cast<std::uint8_t>(beyond ? mid + 1 : mid);
  }
  return sign | low;
}

TEST(E4m3, ValuesAreThoseOfTheFormat) {
  EXPECT_EQ(values()[0], 0);
  EXPECT_EQ(values()[1], std::ldexp(1.0, -9));
  EXPECT_EQ(values()[8], std::ldexp(1.0, -6));
  EXPECT_EQ(values()[largest], 448);
  for (std::uint8_t i = 0; i <= largest; ++i) {
    EXPECT_EQ(nearest(static_cast<float>(values()[i])), i);
    EXPECT_EQ(e4m3_of(bits_of(static_cast<float>(-values()[i]))), i | 0x80);
  }
}

/// Every float between two middles has the same result, and the middles belong to the even ones.
TEST(E4m3, EveryFloat) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr std::uint32_t step = 251;
#else
  constexpr std::uint32_t step = 1;
#endif
  std::uint32_t first = 0, checked = 0;
  const auto check = [&](std::uint32_t end, std::uint8_t expected) {  // all of [first, end)
    std::uint32_t wrong = 0;
    for (std::uint32_t bits = first; bits < end; bits += step)
      wrong |= (e4m3_of(bits) ^ expected) | (e4m3_of(bits | 0x80000000) ^ (expected | 0x80U));
    for (const auto bits : {first, end - 1}) wrong |= e4m3_of(bits) ^ expected;
    EXPECT_EQ(wrong, 0U) << static_cast<int>(expected);
    checked += end - first;
    first = end;
  };
  for (std::uint8_t i = 0; i < largest; ++i) {
    const auto half_way = static_cast<float>(middle(i));
    ASSERT_EQ(double{half_way}, middle(i));
    check(bits_of(half_way) + (i % 2 == 0 ? 1 : 0), i);
  }
  check(0x7f800001, largest);
  check(0x80000000, nan_bits);
  EXPECT_EQ(checked, 0x80000000U);
}

TEST(E4m3, OfFiniteIsTheSame) {
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    if (!std::isfinite(std::bit_cast<float>(bits))) continue;
    ASSERT_EQ(e4m3_of_finite(bits), e4m3_of(bits)) << bits;
  }
}

/// The definition, element by element.
struct Expected {
  std::vector<std::byte> fp8;
  std::vector<float> scales;

  explicit Expected(const RandomMatrix& m) : fp8(m.fp8), scales(m.scales) {
    const auto height = m.kind == ScaleKind::block ? scale_block : 1,
               width = m.kind == ScaleKind::block ? scale_block : m.columns;
    for (std::uint64_t r = 0; r < m.rows; r += height) {
      for (std::uint64_t c = 0; c < m.columns; c += width)
        quantize_block(m, r, std::min(m.rows, r + height), c, std::min(m.columns, c + width),
                       scales[m.scale_at + r / height * m.scale_pitch + c / width]);
    }
  }

  void quantize_block(const RandomMatrix& m, std::uint64_t row, std::uint64_t end_row, std::uint64_t column,
                      std::uint64_t end_column, float& scale) {
    float amax = 0;
    for (auto r = row; r < end_row; ++r) {
      for (auto c = column; c < end_column; ++c) {
        const float magnitude = std::abs(m.value(r, c));
        if (std::isnan(magnitude) || std::isnan(amax)) {
          amax = std::numeric_limits<float>::quiet_NaN();
        } else {
          amax = std::max(amax, magnitude);
        }
      }
    }
    scale = (amax < 1e-12f ? 1e-12f : amax) / 448.0f;
    for (auto r = row; r < end_row; ++r) {
      for (auto c = column; c < end_column; ++c) {
        const float value = m.value(r, c);
        const float quotient = std::copysign(value / scale, value);  // a NaN's sign is the element's
        fp8[m.fp8_at + r * m.fp8_pitch + c] = static_cast<std::byte>(nearest(quotient));
      }
    }
  }
};

bool same_scales(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

RC_GTEST_PROP(Quantize, EveryKernelGivesWhatIsDefined, ()) {
  std::mt19937_64 random(*rc::gen::arbitrary<std::uint64_t>());
  const RandomMatrix matrix(random, 300, *rc::gen::element<std::uint64_t>(5, 300, 1500));
  const Expected expected(matrix);
  for (const auto& kernel : quantize_kernels()) {
    if (!kernel.usable) continue;
    auto fp8 = matrix.fp8;
    auto scales = matrix.scales;
    kernel.run(matrix.kind, matrix.source(matrix.elements.data()), matrix.destination(fp8.data(), scales.data()));
    RC_ASSERT(fp8 == expected.fp8);
    RC_ASSERT(same_scales(scales, expected.scales));
  }
}

TEST(Quantize, BandsStandForThemselves) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 40; ++i) {
    RandomMatrix whole(random, 600, 600);
    auto fp8 = whole.fp8;
    auto scales = whole.scales;
    const auto source = whole.source(whole.elements.data());
    quantize(whole.kind, source, whole.destination(whole.fp8.data(), whole.scales.data()));
    const auto to = whole.destination(fp8.data(), scales.data());
    const auto rows = whole.kind == ScaleKind::block ? scale_block : 1;
    const auto bands = (source.rows + rows - 1) / rows;
    for (auto band = bands; band-- > 0;) {
      auto part = source;
      part.data += band * rows * source.pitch * width_bytes(source.type);
      part.rows = std::min(rows, source.rows - band * rows);
      quantize(whole.kind, part,
               {to.data + band * rows * to.pitch, to.pitch, to.scales + band * to.scale_pitch, to.scale_pitch});
    }
    ASSERT_EQ(fp8, whole.fp8);
    ASSERT_TRUE(same_scales(scales, whole.scales));
  }
}

TEST(Quantize, EveryFiniteBf16UnderManyScales) {
  for (const float amax : {448.0f, 1.0f, 0.0371f, 3.0f, 3e38f, 1e-3f, 1e-12f, 1e-13f, 1e-20f, 1e-38f, 1e-40f}) {
    std::vector<std::uint16_t> row;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      if (std::abs(std::bit_cast<float>(bits << 16)) <= amax) row.push_back(static_cast<std::uint16_t>(bits));
    }
    std::vector<std::byte> fp8(row.size());
    float scale = 0;
    quantize(ScaleKind::channel,
             {reinterpret_cast<const std::byte*>(row.data()), WideFloat::bf16, 1, row.size(), row.size()},
             {fp8.data(), row.size(), &scale, 1});
    float greatest = 0;
    for (const auto bits : row) greatest = std::max(greatest, std::bit_cast<float>(std::uint32_t{bits} << 16));
    ASSERT_EQ(scale, std::max(greatest, 1e-12f) / 448.0f);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const float value = std::bit_cast<float>(std::uint32_t{row[i]} << 16);
      ASSERT_EQ(static_cast<std::uint8_t>(fp8[i]), nearest(value / scale)) << value << " of " << amax;
    }
  }
}

TEST(Quantize, NothingForNoElements) {
  float scale = -1;
  for (const auto kind : {ScaleKind::block, ScaleKind::channel}) {
    quantize(kind, {nullptr, WideFloat::bf16, 3, 0, 0}, {nullptr, 0, &scale, 0});
    quantize(kind, {nullptr, WideFloat::bf16, 0, 3, 3}, {nullptr, 3, &scale, 1});
  }
  EXPECT_EQ(scale, -1);
  EXPECT_EQ(scale_columns(ScaleKind::block, 129), 2U);
  EXPECT_EQ(scale_columns(ScaleKind::channel, 129), 1U);
  EXPECT_EQ(scale_rows(ScaleKind::block, 256), 2U);
  EXPECT_EQ(scale_rows(ScaleKind::channel, 256), 256U);
}

/// The rows of quantize.md's table: elements, the scale's bits, bytes.
TEST(Quantize, EqualsTheDocumentedVectors) {
  std::istringstream text(read_text_file(WEIGHTCAST_SOURCE_DIR "/lib/weightcast/device/quantize.md", 1 << 20));
  std::string line;
  int checked = 0;
  while (std::getline(text, line)) {
    if (!line.starts_with("| `")) continue;
    std::erase(line, '`');
    std::istringstream cells(line.substr(1));
    std::string elements, scale_bits, bytes;
    std::getline(cells, elements, '|');
    std::getline(cells, scale_bits, '|');
    std::getline(cells, bytes, '|');
    std::vector<float> row;
    std::istringstream numbers(elements);
    for (std::string number; numbers >> number;) row.push_back(std::strtof(number.c_str(), nullptr));
    std::vector<std::byte> fp8(row.size());
    for (const auto kind : {ScaleKind::block, ScaleKind::channel}) {
      float scale = 0;
      quantize(kind, {reinterpret_cast<const std::byte*>(row.data()), WideFloat::f32, 1, row.size(), row.size()},
               {fp8.data(), row.size(), &scale, 1});
      EXPECT_EQ(bits_of(scale), std::stoul(scale_bits, nullptr, 16)) << line;
      std::istringstream expected(bytes);
      std::string byte;
      for (const auto held : fp8) {
        ASSERT_TRUE(expected >> byte) << line;
        EXPECT_EQ(static_cast<unsigned long>(held), std::stoul(byte, nullptr, 16)) << line;
      }
      EXPECT_FALSE(expected >> byte) << line;
    }
    ++checked;
  }
  EXPECT_GE(checked, 8);
}

}  // namespace
}  // namespace weightcast
