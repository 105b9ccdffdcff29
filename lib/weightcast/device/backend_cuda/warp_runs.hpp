#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "weightcast/device/digest_keys.hpp"

/// What a warp does with a run of bytes: copies it, digests it. All lanes call these together.
namespace weightcast::gpu {

constexpr int warp = 32;
constexpr std::uint32_t all_lanes = 0xffffffffu;
constexpr std::uint64_t block_bytes = 4 * digest_keys::block_words;  // of the digest: 1 KiB share an outer factor

struct Sums {
  std::uint64_t first = 0, second = 0;
};

__device__ inline std::uint64_t broadcast(std::uint64_t value, int lane) {
  return __shfl_sync(all_lanes, value, lane);
}

/// A word that is not part of a 16-byte vector, by its bytes: rare.
__device__ inline void add_byte(Sums& sums, std::uint64_t offset, std::byte value) {
  const std::uint64_t word = offset / 4, block = word / digest_keys::block_words, j = word % digest_keys::block_words;
  const std::uint64_t shifted = static_cast<std::uint64_t>(value) << (8 * (offset % 4));
  sums.first += digest_keys::block_factor(0, block) * (digest_keys::word_key(0, j) * shifted);
  sums.second += digest_keys::block_factor(1, block) * (digest_keys::word_key(1, j) * shifted);
}

/// Inner sums of one vector of four words whose first is word j of its block.
__device__ inline void add_vector(std::uint64_t& s0, std::uint64_t& s1, const uint4& v,
                                  const std::uint32_t (&keys)[2][digest_keys::block_words], unsigned j) {
  const uint4 k0 = *reinterpret_cast<const uint4*>(&keys[0][j]), k1 = *reinterpret_cast<const uint4*>(&keys[1][j]);
  s0 += static_cast<std::uint64_t>(k0.x) * v.x + static_cast<std::uint64_t>(k0.y) * v.y +
        static_cast<std::uint64_t>(k0.z) * v.z + static_cast<std::uint64_t>(k0.w) * v.w;
  s1 += static_cast<std::uint64_t>(k1.x) * v.x + static_cast<std::uint64_t>(k1.y) * v.y +
        static_cast<std::uint64_t>(k1.z) * v.z + static_cast<std::uint64_t>(k1.w) * v.w;
}

/// Of bytes that this kernel has just written: from the L2 cache, which is what every other reader sees, and not from
/// the multiprocessor's own or from registers.
__device__ inline uint4 read_back(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

/// Copies `depth` vectors of each lane; those from `count` on are left out.
template <unsigned depth, bool whole>
__device__ inline void copy_vectors(uint4* to, const uint4* from, unsigned count) {
  uint4 v[depth];
#pragma unroll
  for (unsigned i = 0; i < depth; ++i) {
    if (whole || i * warp < count) v[i] = __ldcs(from + i * warp);
  }
#pragma unroll
  for (unsigned i = 0; i < depth; ++i) {
    if (whole || i * warp < count) to[i * warp] = v[i];
  }
}

/// A warp copies one run of bytes, both ends at multiples of 16. Sixteen loads are in flight for each thread: with
/// eight it takes a fifth longer. The source is read once, so it leaves the cache to what was written.
__device__ inline void copy_run(std::byte* to, const std::byte* from, unsigned size) {
  const unsigned lane = threadIdx.x % warp, count = size / 16;
  auto* out = reinterpret_cast<uint4*>(to) + lane;
  const auto* in = reinterpret_cast<const uint4*>(from) + lane;
  unsigned first = 0;
  for (; first + 16 * warp <= count; first += 16 * warp) copy_vectors<16, true>(out + first, in + first, 0);
  for (; first + lane < count; first += 4 * warp) copy_vectors<4, false>(out + first, in + first, count - first - lane);
}

/// A warp digests one run of bytes, both ends at multiples of 16 in memory and in the parameter. The outer factors of
/// 32 digest blocks are computed at a time, one by each lane.
template <bool copied_here>
__device__ void digest_run(Sums& sums, const std::byte* data, std::uint64_t offset, std::uint64_t size,
                           const std::uint32_t (&keys)[2][digest_keys::block_words]) {
  const unsigned lane = threadIdx.x % warp;
  const std::uint64_t first_block = offset / block_bytes, last_block = (offset + size - 1) / block_bytes;
  for (std::uint64_t group = first_block; group <= last_block; group += warp) {
    const std::uint64_t h0 = digest_keys::block_factor(0, group + lane),
                        h1 = digest_keys::block_factor(1, group + lane);
    const unsigned blocks = static_cast<unsigned>(last_block - group + 1 < warp ? last_block - group + 1 : warp);
#pragma unroll 4
    for (unsigned b = 0; b < blocks; ++b) {
      // Two vectors of each digest block for each lane; those outside the run count as zero.
      const std::uint64_t begin = (group + b) * block_bytes + 16 * lane, half = block_bytes / 2;
      const uint4 nothing = make_uint4(0, 0, 0, 0);
      const bool in0 = begin >= offset && begin < offset + size,
                 in1 = begin + half >= offset && begin + half < offset + size;
      const auto* const first = reinterpret_cast<const uint4*>(data + (begin - offset));
      const auto* const second = reinterpret_cast<const uint4*>(data + (begin + half - offset));
      const uint4 v0 = !in0 ? nothing : copied_here ? read_back(first) : *first;
      const uint4 v1 = !in1 ? nothing : copied_here ? read_back(second) : *second;
      std::uint64_t s0 = 0, s1 = 0;
      add_vector(s0, s1, v0, keys, 4 * lane);
      add_vector(s0, s1, v1, keys, 4 * lane + digest_keys::block_words / 2);
      sums.first += broadcast(h0, static_cast<int>(b)) * s0;
      sums.second += broadcast(h1, static_cast<int>(b)) * s1;
    }
  }
}

/// Adds the lanes' sums up in a result, and begins anew.
__device__ inline void flush_sums(Sums& sums, std::uint64_t* result) {
  for (int step = warp / 2; step > 0; step /= 2) {
    sums.first += __shfl_down_sync(all_lanes, sums.first, step);
    sums.second += __shfl_down_sync(all_lanes, sums.second, step);
  }
  if (threadIdx.x % warp == 0 && (sums.first | sums.second) != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(result), sums.first);
    atomicAdd(reinterpret_cast<unsigned long long*>(result + 1), sums.second);
  }
  sums = {};
}

}  // namespace weightcast::gpu
