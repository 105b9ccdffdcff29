#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "weightcast/device/elements.hpp"
#include "weightcast/device/host_device.hpp"

/// Weights as fp8 engines hold them: 8-bit floats (E4M3FN) and fp32 scales by which they are multiplied. Every scale
/// and every byte is defined by quantize.md, which says why it is so, and has test vectors.
namespace weightcast {

/// What has a scale of its own: 128 x 128 elements, where the last ones in either direction may be fewer
/// (`weight_scale_inv`), or a row (`weight_scale`).
enum class ScaleKind : std::uint8_t { block, channel };
inline constexpr std::uint64_t scale_block = 128;

/// Scales are never less than 1e-12 / 448: a block of zeros has one, too.
inline constexpr float least_amax = 1e-12f, e4m3_max = 448.0f;

/// The scale of elements of which this is the greatest magnitude, as float bits without sign. NaN stays NaN.
WEIGHTCAST_HOST_DEVICE constexpr float scale_of(std::uint32_t amax_bits) noexcept {
  if (amax_bits > 0x7f800000) return __builtin_bit_cast(float, 0x7fc00000);
  const float amax = __builtin_bit_cast(float, amax_bits);
  return (amax < least_amax ? least_amax : amax) / e4m3_max;
}

/// The E4M3FN bits of the finite float with these bits: to nearest, ties to even; beyond 448 it is 448.
WEIGHTCAST_HOST_DEVICE constexpr std::uint8_t e4m3_of_finite(std::uint32_t bits) noexcept {
  const std::uint32_t sign = bits >> 24 & 0x80, given = bits & 0x7fffffff;
  const std::uint32_t magnitude = given > 0x43e00000 ? 0x43e00000 : given;
  // Values of exponent e are multiples of 2^(e-3), below 2^-6 of 2^-9; as floats are from 2^(e+20) on: so adding that
  // rounds to them, and what it adds to the bits is how many they are.
  const std::uint32_t exponent = (magnitude > 0x3c800000 ? magnitude : 0x3c800000) & 0x7f800000;
  const std::uint32_t shift = exponent + (20 << 23);
  const std::uint32_t multiple =
      __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + __builtin_bit_cast(float, shift)) -
      shift;
  // The first exponent has the multiples 0 to 7 and begins with 0, each next one has eight more, 8 to 15 of its own.
  return static_cast<std::uint8_t>(sign | (multiple + ((exponent - 0x3c800000) >> 20)));
}
/// The same of any float: infinity becomes 448, NaN stays NaN with its sign.
WEIGHTCAST_HOST_DEVICE constexpr std::uint8_t e4m3_of(std::uint32_t bits) noexcept {
  return (bits & 0x7fffffff) > 0x7f800000 ? static_cast<std::uint8_t>((bits >> 24 & 0x80) | 0x7f)
                                          : e4m3_of_finite(bits);
}

/// What the float with these bits becomes under a scale that is infinite or NaN: zero where it is finite and the scale
/// is infinite, else NaN; with its sign.
WEIGHTCAST_HOST_DEVICE constexpr std::uint8_t e4m3_of_unscalable(std::uint32_t bits, float scale) noexcept {
  const bool zero = scale == scale && (bits & 0x7fffffff) < 0x7f800000;
  return static_cast<std::uint8_t>((bits >> 24 & 0x80) | (zero ? 0 : 0x7f));
}

/// A matrix of floats, row after row; `pitch` elements from one to the next, at least `columns`.
struct FloatMatrix {
  const std::byte* data = nullptr;
  WideFloat type = WideFloat::f32;
  std::uint64_t rows = 0, columns = 0, pitch = 0;
};
/// Where its elements and scales go: those at least as many bytes from row to row as it has columns, these
/// `scale_pitch` scales from block row to block row, or, by channel, from row to row.
struct Fp8Matrix {
  std::byte* data = nullptr;
  std::uint64_t pitch = 0;
  float* scales = nullptr;
  std::uint64_t scale_pitch = 0;
};

/// Scales of a row of blocks, and how many rows of scales there are: [ceil(R / 128), ceil(C / 128)] or [R, 1].
constexpr std::uint64_t scale_columns(ScaleKind kind, std::uint64_t columns) noexcept {
  return kind == ScaleKind::channel ? 1 : (columns + scale_block - 1) / scale_block;
}
constexpr std::uint64_t scale_rows(ScaleKind kind, std::uint64_t rows) noexcept {
  return kind == ScaleKind::channel ? rows : (rows + scale_block - 1) / scale_block;
}

/// Quantises a matrix on the host, in this thread: any shape, elements at any alignment, no overlap; nothing for no
/// elements. Bands of 128 rows (with ScaleKind::channel: rows) stand for themselves: threads may take them in any
/// order, one gives the same bits. For device memory: gpu::quantize().
void quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination) noexcept;

/// The ways of doing it, from the slowest to the fastest; quantize() takes the last that this processor can. All give
/// the same bits.
struct QuantizeKernel {
  const char* name;
  bool usable;
  void (*run)(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination);
};
std::span<const QuantizeKernel> quantize_kernels() noexcept;

}  // namespace weightcast
