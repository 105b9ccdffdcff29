#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// The bits of marks (gpu::mark()) as a warp makes them: a bit for each unit of 16 bits. All lanes call these together.
namespace weightcast::gpu {

/// Which of the 8 units of two vectors differ.
__device__ inline std::uint32_t differing_units(const uint4& a, const uint4& b) {
  const auto pair = [](std::uint32_t x, std::uint32_t y) {
    const std::uint32_t bits = x ^ y;
    return ((bits & 0xffff) != 0 ? 1u : 0u) | (bits >> 16 != 0 ? 2u : 0u);
  };
  return pair(a.x, b.x) | pair(a.y, b.y) << 2 | pair(a.z, b.z) << 4 | pair(a.w, b.w) << 6;
}

/// The 32 bits of four neighbouring lanes' vectors, on each of them, from the lane's own 8.
__device__ inline std::uint32_t joined_units(std::uint32_t differing) {
  std::uint32_t word = differing << threadIdx.x % 4 * 8;
  word |= __shfl_xor_sync(0xffffffffu, word, 1);
  return word | __shfl_xor_sync(0xffffffffu, word, 2);
}

/// Sets the bits of 32 units from `unit` on, beside whoever else does.
__device__ inline void add_marks(std::uint32_t* marks, std::uint64_t unit, std::uint32_t word) {
  const auto shift = static_cast<unsigned>(unit % 32);
  const std::uint32_t low = word << shift, high = shift == 0 ? 0 : word >> (32 - shift);
  if (low != 0) atomicOr(marks + unit / 32, low);
  if (high != 0) atomicOr(marks + unit / 32 + 1, high);
}

/// Gathers the words of four rows of 32 vectors, each lane one of them: that of vectors `4 * (lane / 4)` and the three
/// behind it in row `lane % 4`.
__device__ inline void keep_own(std::uint32_t& own, unsigned row, std::uint32_t word) {
  if (row % 4 == threadIdx.x % 4) own = word;
}

/// A warp writes `count` vectors, which load(i) gives, and marks what differs from what was there; `unit` is the number
/// of the first unit. So many loads of each are in flight.
template <unsigned depth, typename Load>
__device__ void write_and_mark(uint4* out, unsigned count, std::uint32_t* marks, std::uint64_t unit, const Load& load) {
  constexpr unsigned warp = 32;
  static_assert(depth % 4 == 0);
  const unsigned lane = threadIdx.x % warp;
#pragma unroll 1
  for (unsigned first = 0; first < count; first += depth * warp) {
    uint4 made[depth], held[depth];
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      const unsigned at = first + i * warp + lane;
      if (at >= count) continue;
      made[i] = load(at);
      held[i] = __ldcg(out + at);
    }
    std::uint32_t own = 0;
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      const unsigned at = first + i * warp + lane;
      std::uint32_t differing = 0;
      if (at < count) {
        out[at] = made[i];
        differing = differing_units(made[i], held[i]);
      }
      keep_own(own, i, joined_units(differing));
      if (i % 4 == 3) add_marks(marks, unit + 8 * (first + (i - 3 + lane % 4) * warp + lane / 4 * 4), own);
    }
  }
}

/// The same, unit by unit: of any alignment.
template <typename Load>
__device__ void write_units_and_mark(std::uint16_t* out, unsigned count, std::uint32_t* marks, std::uint64_t unit,
                                     const Load& load) {
  constexpr unsigned warp = 32;
  for (unsigned first = 0; first < count; first += warp) {
    const unsigned at = first + threadIdx.x % warp;
    bool differs = false;
    if (at < count) {
      const std::uint16_t made = load(at);
      differs = made != out[at];
      out[at] = made;
    }
    const std::uint32_t word = __ballot_sync(0xffffffffu, differs);
    if (threadIdx.x % warp == 0) add_marks(marks, unit + first, word);
  }
}

}  // namespace weightcast::gpu
