#pragma once

#include <cstddef>
#include <cstdint>

#include "weightcast/device/host_device.hpp"

/// What happens to the elements of somebody else's tensors on their way: they are rounded, gathered and scattered.
///
/// Rounding is to 16-bit floating point, of fp32 and from one 16-bit type to the other, for host and device code alike:
/// to nearest, ties to even; what is too large becomes infinite, NaN stays NaN (quiet, with its sign and upper payload
/// bits). Written so that compilers can vectorise loops over it.
namespace weightcast {

/// What comes of it, and what of.
enum class NarrowFloat : std::uint8_t { bf16, f16 };
enum class WideFloat : std::uint8_t { f32, bf16, f16 };
struct Rounding {
  NarrowFloat to = NarrowFloat::bf16;
  WideFloat from = WideFloat::f32;
};

/// The bfloat16 bits of the float with these bits.
WEIGHTCAST_HOST_DEVICE constexpr std::uint16_t bf16_of(std::uint32_t bits) noexcept {
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40;
  return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

/// The IEEE half precision bits of the float with these bits.
WEIGHTCAST_HOST_DEVICE constexpr std::uint16_t f16_of(std::uint32_t bits) noexcept {
  const std::uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // The exponent's bias becomes 15 instead of 127; rounding may carry into the exponent, and so into infinity.
  const std::uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 halves are multiples of 2^-24, as floats are between 0.5 and 1: so an addition rounds to them.
  constexpr float half = 0.5f;
  const std::uint32_t subnormal =
      __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + half) - 0x3f000000;
  const std::uint32_t quiet = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  std::uint32_t result = magnitude < 0x38800000 ? subnormal : normal;
  result = magnitude >= 0x47800000 ? 0x7c00 : result;
  result = magnitude > 0x7f800000 ? quiet : result;
  return static_cast<std::uint16_t>(sign | result);
}

WEIGHTCAST_HOST_DEVICE constexpr std::uint16_t narrow(NarrowFloat to, std::uint32_t bits) noexcept {
  return to == NarrowFloat::bf16 ? bf16_of(bits) : f16_of(bits);
}

/// The bits of the float that is the value of these bits: exact.
WEIGHTCAST_HOST_DEVICE constexpr std::uint32_t float_of_bf16(std::uint16_t bits) noexcept {
  return static_cast<std::uint32_t>(bits) << 16;
}
WEIGHTCAST_HOST_DEVICE constexpr std::uint32_t float_of_f16(std::uint16_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  const std::uint32_t normal = (magnitude << 13) + 0x38000000;
  // Placed in the fraction of 2^-14, a subnormal half is itself plus 2^-14.
  const std::uint32_t subnormal = __builtin_bit_cast(
      std::uint32_t, __builtin_bit_cast(float, (magnitude << 13) + 0x38800000) - __builtin_bit_cast(float, 0x38800000));
  std::uint32_t result = magnitude < 0x0400 ? subnormal : normal;
  result = magnitude >= 0x7c00 ? 0x7f800000 | magnitude << 13 : result;
  return sign | result;
}
WEIGHTCAST_HOST_DEVICE constexpr std::uint32_t widen(WideFloat from, std::uint32_t bits) noexcept {
  return from == WideFloat::f32    ? bits
         : from == WideFloat::bf16 ? float_of_bf16(static_cast<std::uint16_t>(bits))
                                   : float_of_f16(static_cast<std::uint16_t>(bits));
}
WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t width_bytes(WideFloat format) noexcept {
  return format == WideFloat::f32 ? 4 : 2;
}

/// Rounds `count` elements at `source` on the host; any alignment, no overlap. For device memory:
/// gpu::copy_and_digest().
void narrow(NarrowFloat to, std::byte* destination, const std::byte* source, std::uint64_t count,
            WideFloat from = WideFloat::f32) noexcept;

/// Elements [first, first + count) of a matrix, counted row after row: (r, c) is r * row_stride + c * column_stride
/// bytes behind the matrix's first element. Strides may be negative or 0; an element has 1, 2, 4 or 8 bytes.
struct StridedElements {
  std::uint64_t columns = 1, first = 0, count = 0;
  std::int64_t row_stride = 0, column_stride = 0;
  std::uint64_t element_bytes = 1;
};

/// Copies them to a dense destination, and from a dense source, on the host; any alignment, no overlap. For device
/// memory: gpu::gather() and gpu::scatter().
void gather(const StridedElements& elements, std::byte* destination, const std::byte* matrix) noexcept;
void scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source) noexcept;

}  // namespace weightcast
