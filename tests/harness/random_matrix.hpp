#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "weightcast/device/quantize.hpp"

/// Matrices to quantise, with all that weights may be and should not be, and where their elements and scales go.
namespace weightcast::harness {

/// What is not an element lies between the rows and around them, and must stay.
struct RandomMatrix {
  ScaleKind kind;
  WideFloat type;
  std::uint64_t rows, columns, pitch, at;  ///< elements; the first lies `at` elements behind the beginning
  std::uint64_t fp8_pitch, fp8_at, scale_pitch, scale_at;
  std::vector<std::byte> elements, fp8;
  std::vector<float> scales;

  RandomMatrix(std::mt19937_64& random, std::uint64_t most_rows, std::uint64_t most_columns) {
    const auto below = [&](std::uint64_t end) { return random() % end; };
    kind = below(2) == 0 ? ScaleKind::block : ScaleKind::channel;
    type = static_cast<WideFloat>(below(3));
    rows = 1 + below(most_rows);
    columns = 1 + below(most_columns);
    if (below(2) == 0) columns = (columns + 15) / 16 * 16;  // as models have them
    const std::uint64_t unit = below(2) == 0 ? 16 : 1;
    const auto some = [&](std::uint64_t end) { return below(3) == 0 ? unit * below(end) : 0; };
    pitch = columns + some(40);
    at = some(4);
    fp8_pitch = columns + some(40);
    fp8_at = some(4);
    scale_pitch = scale_columns(kind, columns) + some(3);
    scale_at = some(2);
    elements.resize((at + rows * pitch) * width_bytes(type));
    fp8.resize(fp8_at + rows * fp8_pitch, std::byte{0x5a});
    scales.resize(scale_at + scale_rows(kind, rows) * scale_pitch, -1.0f);
    fill(random);
  }

  FloatMatrix source(const std::byte* data) const {
    return {data + at * width_bytes(type), type, rows, columns, pitch};
  }
  Fp8Matrix destination(std::byte* bytes, float* to_scales) const {
    return {bytes + fp8_at, fp8_pitch, to_scales + scale_at, scale_pitch};
  }
  /// Element (row, column) as float.
  float value(std::uint64_t row, std::uint64_t column) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, elements.data() + (at + row * pitch + column) * width_bytes(type), width_bytes(type));
    return std::bit_cast<float>(widen(type, bits));
  }

 private:
  void fill(std::mt19937_64& random) {
    // Of all matrices some are like weights, some have any bits at all, some only small numbers, some only few.
    const auto sort = random() % 6;
    std::normal_distribution<float> normal(0, std::ldexp(1.0f, static_cast<int>(random() % 60) - 40));
    for (std::size_t i = 0; i < elements.size() / width_bytes(type); ++i) {
      float value = normal(random);
      const auto bits = static_cast<std::uint32_t>(random());
      if (sort == 0 || (sort == 1 && bits % 5000 == 0))
        value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
      if (sort == 2) value = static_cast<float>(static_cast<int>(bits % 897) - 448);  // many ties
      if (sort == 3 && bits % 2 == 0) value = bits % 4 == 0 ? 0.0f : -0.0f;
      if (sort == 4) value = std::ldexp(value, -100);
      const auto wide = std::bit_cast<std::uint32_t>(value);
      const std::uint32_t held = type == WideFloat::f32 ? wide : type == WideFloat::bf16 ? bf16_of(wide) : f16_of(wide);
      std::memcpy(elements.data() + i * width_bytes(type), &held, width_bytes(type));
    }
  }
};

}  // namespace weightcast::harness
