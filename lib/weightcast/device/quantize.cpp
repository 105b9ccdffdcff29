#include "weightcast/device/quantize.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

// Everything below is compiled once for each instruction set, by being inlined into a function that may use it: plain
// loops, which compilers vectorise. Division is the processor's own, so each gives the same bits.
#define WEIGHTCAST_INLINE inline __attribute__((always_inline))

namespace weightcast {
namespace {

template <WideFloat from>
using Bits = std::conditional_t<from == WideFloat::f32, std::uint32_t, std::uint16_t>;

/// Bytes of each row that are worked on at a time, so that 128 rows are still in cache when their scales are known.
constexpr std::uint64_t strip_bytes = 2048;

/// The greatest magnitude of a run, and of `most`, as bits without sign. In the bits' order NaN is above all.
template <WideFloat from>
WEIGHTCAST_INLINE Bits<from> greatest(const std::byte* run, std::uint64_t count, Bits<from> most) noexcept {
  constexpr auto magnitude = static_cast<Bits<from>>(static_cast<Bits<from>>(~0U) >> 1);
  for (std::uint64_t i = 0; i < count; ++i) {
    Bits<from> bits;
    std::memcpy(&bits, run + sizeof bits * i, sizeof bits);
    bits = static_cast<Bits<from>>(bits & magnitude);
    most = bits > most ? bits : most;
  }
  return most;
}

/// The value of a finite element. float_of_f16() has a choice of two sums, of which compilers make a branch.
template <WideFloat from>
WEIGHTCAST_INLINE float value_of(Bits<from> bits) noexcept {
  if constexpr (from != WideFloat::f16) return std::bit_cast<float>(widen(from, bits));
  // A multiple, 1024 to 2047 or, of the least exponent, 0 to 2047, of a power of two.
  const std::uint32_t sign = (bits & 0x8000U) << 16, magnitude = bits & 0x7fffU;
  const std::uint32_t exponent = (magnitude > 0x0400 ? magnitude : 0x0400) & 0x7c00;
  const auto multiple = static_cast<float>(static_cast<std::int32_t>(magnitude - exponent + 0x0400));
  return multiple * std::bit_cast<float>(sign | ((exponent << 13) + 0x33000000));
}

template <WideFloat from>
WEIGHTCAST_INLINE void quantize_run(std::byte* __restrict destination, const std::byte* __restrict run,
                                    std::uint64_t count, float scale) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) {
    Bits<from> bits;
    std::memcpy(&bits, run + sizeof bits * i, sizeof bits);
    const float quotient = value_of<from>(bits) / scale;
    destination[i] = static_cast<std::byte>(e4m3_of_finite(std::bit_cast<std::uint32_t>(quotient)));
  }
}

template <WideFloat from>
void quantize_unscalable(std::byte* destination, const std::byte* run, std::uint64_t count, float scale) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) {
    Bits<from> bits;
    std::memcpy(&bits, run + sizeof bits * i, sizeof bits);
    destination[i] = static_cast<std::byte>(e4m3_of_unscalable(widen(from, bits), scale));
  }
}

template <WideFloat from>
WEIGHTCAST_INLINE void quantize_scaled(std::byte* destination, const std::byte* run, std::uint64_t count,
                                       float scale) noexcept {
  if (!std::isfinite(scale)) return quantize_unscalable<from>(destination, run, count, scale);
  // Whole blocks have a loop of their own, of known length.
  count == scale_block ? quantize_run<from>(destination, run, scale_block, scale)
                       : quantize_run<from>(destination, run, count, scale);
}

/// Columns [first, end) of up to 128 rows.
template <WideFloat from>
WEIGHTCAST_INLINE void quantize_strip(const FloatMatrix& source, const Fp8Matrix& destination, std::uint64_t first_row,
                                      std::uint64_t first, std::uint64_t end) noexcept {
  constexpr auto width = sizeof(Bits<from>);
  std::array<Bits<from>, strip_bytes / width / scale_block> amax{};
  const auto end_row = std::min(source.rows, first_row + scale_block);
  for (auto row = first_row; row < end_row; ++row) {
    const auto* const data = source.data + row * source.pitch * width;
    for (std::uint64_t c = first, b = 0; c < end; c += scale_block, ++b) {
      const auto count = std::min(scale_block, end - c);
      amax[b] = count == scale_block ? greatest<from>(data + c * width, scale_block, amax[b])
                                     : greatest<from>(data + c * width, count, amax[b]);
    }
  }
  auto* const scales = destination.scales + first_row / scale_block * destination.scale_pitch + first / scale_block;
  for (std::uint64_t c = first, b = 0; c < end; c += scale_block, ++b) scales[b] = scale_of(widen(from, amax[b]));
  for (auto row = first_row; row < end_row; ++row) {
    const auto* const data = source.data + row * source.pitch * width;
    auto* const to = destination.data + row * destination.pitch;
    for (std::uint64_t c = first, b = 0; c < end; c += scale_block, ++b)
      quantize_scaled<from>(to + c, data + c * width, std::min(scale_block, end - c), scales[b]);
  }
}

template <WideFloat from>
WEIGHTCAST_INLINE void quantize_all(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination) noexcept {
  constexpr auto width = sizeof(Bits<from>);
  if (source.columns == 0) return;
  if (kind == ScaleKind::channel) {
    for (std::uint64_t row = 0; row < source.rows; ++row) {
      const auto* const data = source.data + row * source.pitch * width;
      float& scale = destination.scales[row * destination.scale_pitch];
      scale = scale_of(widen(from, greatest<from>(data, source.columns, 0)));
      quantize_scaled<from>(destination.data + row * destination.pitch, data, source.columns, scale);
    }
    return;
  }
  constexpr auto strip = strip_bytes / width;
  for (std::uint64_t row = 0; row < source.rows; row += scale_block) {
    for (std::uint64_t column = 0; column < source.columns; column += strip)
      quantize_strip<from>(source, destination, row, column, std::min(source.columns, column + strip));
  }
}

WEIGHTCAST_INLINE void quantize_any(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination) noexcept {
  switch (source.type) {
    case WideFloat::f32: return quantize_all<WideFloat::f32>(kind, source, destination);
    case WideFloat::bf16: return quantize_all<WideFloat::bf16>(kind, source, destination);
    case WideFloat::f16: return quantize_all<WideFloat::f16>(kind, source, destination);
  }
}

void quantize_portable(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination) {
  quantize_any(kind, source, destination);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void quantize_avx2(ScaleKind kind, const FloatMatrix& source,
                                                   const Fp8Matrix& destination) {
  quantize_any(kind, source, destination);
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void quantize_avx512(ScaleKind kind,
                                                                                   const FloatMatrix& source,
                                                                                   const Fp8Matrix& destination) {
  quantize_any(kind, source, destination);
}
#endif

}  // namespace

std::span<const QuantizeKernel> quantize_kernels() noexcept {
#if defined(__x86_64__)
  static const std::array kernels = {
      QuantizeKernel{"portable", true, quantize_portable},
      QuantizeKernel{"avx2", __builtin_cpu_supports("avx2") != 0, quantize_avx2},
      QuantizeKernel{"avx512",
                     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
                     quantize_avx512}};
#else
  static const std::array kernels = {QuantizeKernel{"portable", true, quantize_portable}};
#endif
  return kernels;
}

void quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination) noexcept {
  static const auto run = [] {
    auto best = quantize_portable;
    for (const auto& kernel : quantize_kernels()) best = kernel.usable ? kernel.run : best;
    return best;
  }();
  run(kind, source, destination);
}

}  // namespace weightcast
