#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "weightcast/device/backend_cuda/kernels.hpp"
#include "weightcast/device/backend_cuda/marks.hpp"
#include "weightcast/device/digest_keys.hpp"

namespace weightcast::gpu {
namespace {

constexpr int warp = 32;
constexpr std::uint32_t all_lanes = 0xffffffffu;
constexpr std::uint64_t block_bytes = 4 * digest_keys::block_words;  // of the digest: 1 KiB share an outer factor

// A constant of the program: the driver loads it with the kernels, once for each GPU that a process uses.
__constant__ const digest_keys::KeyTable constant_keys = digest_keys::make_key_table();

// --- copy -----------------------------------------------------------------------------------------------------------

/// One warp copies rows of one task: four independent 16-byte loads in flight for each thread, bytes where nothing is
/// aligned.
__global__ void __launch_bounds__(512)
    copy_kernel(const CopyTask* tasks, const std::byte* source, std::byte* destination) {
  const CopyTask task = tasks[blockIdx.x];
  const unsigned warps = blockDim.x / warp, lane = threadIdx.x % warp;
  const bool aligned = (((reinterpret_cast<std::uintptr_t>(source) + task.source) |
                         (reinterpret_cast<std::uintptr_t>(destination) + task.destination) | task.source_pitch |
                         task.destination_pitch | task.row_bytes) %
                        16) == 0;
  for (std::uint64_t row = threadIdx.x / warp; row < task.rows; row += warps) {
    const std::byte* from = source + task.source + row * task.source_pitch;
    std::byte* to = destination + task.destination + row * task.destination_pitch;
    if (!aligned) {
      for (std::uint64_t i = lane; i < task.row_bytes; i += warp) to[i] = from[i];
      continue;
    }
    const auto* vectors = reinterpret_cast<const uint4*>(from);
    auto* out = reinterpret_cast<uint4*>(to);
    const std::uint64_t count = task.row_bytes / 16;
    std::uint64_t i = lane;
    for (; i + 3 * warp < count; i += 4 * warp) {
      const uint4 a = vectors[i], b = vectors[i + warp], c = vectors[i + 2 * warp], d = vectors[i + 3 * warp];
      out[i] = a;
      out[i + warp] = b;
      out[i + 2 * warp] = c;
      out[i + 3 * warp] = d;
    }
    for (; i < count; i += warp) out[i] = vectors[i];
  }
}

// --- digest ---------------------------------------------------------------------------------------------------------

struct Sums {
  std::uint64_t first = 0, second = 0;
};

__device__ inline std::uint64_t broadcast(std::uint64_t value, int lane) {
  return __shfl_sync(all_lanes, value, lane);
}

/// A word that is not part of a 16-byte vector, by its bytes: rare.
__device__ void add_byte(Sums& sums, std::uint64_t offset, std::byte value) {
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
__device__ void copy_run(std::byte* to, const std::byte* from, unsigned size) {
  const unsigned lane = threadIdx.x % warp, count = size / 16;
  auto* out = reinterpret_cast<uint4*>(to) + lane;
  const auto* in = reinterpret_cast<const uint4*>(from) + lane;
  unsigned first = 0;
  for (; first + 16 * warp <= count; first += 16 * warp) copy_vectors<16, true>(out + first, in + first, 0);
  for (; first + lane < count; first += 4 * warp) copy_vectors<4, false>(out + first, in + first, count - first - lane);
}

/// Vector i of what floats are rounded to: eight of them.
template <NarrowFloat to>
__device__ inline uint4 narrowed(const uint4* floats, unsigned i) {
  const auto pair = [](std::uint32_t low, std::uint32_t high) {
    return narrow(to, low) | static_cast<std::uint32_t>(narrow(to, high)) << 16;
  };
  const uint4 a = __ldcs(floats + 2 * i), b = __ldcs(floats + 2 * i + 1);
  return make_uint4(pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w));
}

/// A warp rounds one run of floats to `size` bytes, both ends at multiples of 16: eight floats become one vector, and
/// four such are in flight for each thread.
template <NarrowFloat to>
__device__ void narrow_run(std::byte* destination, const std::byte* source, unsigned size) {
  const unsigned lane = threadIdx.x % warp, count = size / 16;
  auto* const out = reinterpret_cast<uint4*>(destination);
  const auto* const in = reinterpret_cast<const uint4*>(source);
#pragma unroll 4
  for (unsigned i = lane; i < count; i += warp) out[i] = narrowed<to>(in, i);
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

/// Where what is digested comes from: it is there, or it is first copied, or rounded, by the warp that digests it.
enum class From { base, copy, bf16, f16 };

template <From from_where>
constexpr NarrowFloat rounded_to = from_where == From::f16 ? NarrowFloat::f16 : NarrowFloat::bf16;

/// A warp writes one row, and marks what differs from what was there; `unit` is the number of its first unit.
template <From from_where>
__device__ void write_row_and_mark(std::byte* to, const std::byte* from, unsigned size, bool aligned,
                                   std::uint32_t* marks, std::uint64_t unit) {
  constexpr auto rounded = rounded_to<from_where>;
  auto* const out = reinterpret_cast<uint4*>(to);
  const auto* const in = reinterpret_cast<const uint4*>(from);
  auto* const units = reinterpret_cast<std::uint16_t*>(to);
  if constexpr (from_where == From::copy) {
    if (aligned) {
      write_and_mark<8>(out, size / 16, marks, unit, [in](unsigned i) { return __ldcs(in + i); });
    } else {
      write_units_and_mark(units, size / 2, marks, unit, [from](unsigned i) {
        return static_cast<std::uint16_t>(static_cast<unsigned>(from[2 * i]) | static_cast<unsigned>(from[2 * i + 1])
                                                                                   << 8);
      });
    }
  } else if (aligned) {
    write_and_mark<4>(out, size / 16, marks, unit, [in](unsigned i) { return narrowed<rounded>(in, i); });
  } else {
    const auto* const floats = reinterpret_cast<const std::uint32_t*>(from);
    write_units_and_mark(units, size / 2, marks, unit, [floats](unsigned i) { return narrow(rounded, floats[i]); });
  }
}

/// `source`: where an offset of zero would lie, in bytes as they were before any rounding.
template <From from_where, bool marking = false>
__global__ void __launch_bounds__(256, from_where == From::base ? 1 : 2)
    digest_kernel(const DigestTask* tasks, std::uint64_t count, std::uintptr_t source,
                  std::conditional_t<from_where != From::base, std::byte, const std::byte>* base,
                  std::uint64_t* results, std::uint32_t* marks) {
  constexpr bool with_source = from_where != From::base, rounds = with_source && from_where != From::copy;
  constexpr unsigned width = rounds ? 2 : 1;  // bytes of the source for each
  __shared__ alignas(16) std::uint32_t keys[2][digest_keys::block_words];
  for (unsigned i = threadIdx.x; i < 2 * digest_keys::block_words; i += blockDim.x) {
    keys[i / digest_keys::block_words][i % digest_keys::block_words] =
        constant_keys.lane[i / digest_keys::block_words][i % digest_keys::block_words];
  }
  __syncthreads();
  const unsigned warps = blockDim.x / warp, lane = threadIdx.x % warp;
  for (std::uint64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const DigestTask task = tasks[t];
    const bool aligned =
        (((reinterpret_cast<std::uintptr_t>(base) + task.data) | task.offset | task.pitch | task.parameter_pitch |
          task.row_bytes | (with_source ? (source + width * task.source) | width * task.source_pitch : 0)) %
         16) == 0;
    Sums sums;
    for (unsigned row = threadIdx.x / warp; row < task.rows; row += warps) {
      auto* const data = base + task.data + row * task.pitch;
      const std::uint64_t offset = task.offset + row * task.parameter_pitch;
      if constexpr (with_source) {
        const auto* const from =
            reinterpret_cast<const std::byte*>(source + width * (task.source + row * task.source_pitch));
        if constexpr (marking) {
          write_row_and_mark<from_where>(data, from, task.row_bytes, aligned, marks,
                                         (task.data + row * task.pitch) / 2);
        } else if constexpr (rounds) {
          constexpr auto to = rounded_to<from_where>;
          const auto* const floats = reinterpret_cast<const std::uint32_t*>(from);
          auto* const rounded = reinterpret_cast<std::uint16_t*>(data);
          if (aligned) {
            narrow_run<to>(data, from, task.row_bytes);
          } else {
            for (unsigned i = lane; i < task.row_bytes / 2; i += warp) rounded[i] = narrow(to, floats[i]);
          }
        } else {
          if (aligned) {
            copy_run(data, from, task.row_bytes);
          } else {
            for (unsigned i = lane; i < task.row_bytes; i += warp) data[i] = from[i];
          }
        }
        __syncwarp();
      }
      if (aligned) {
        digest_run<with_source>(sums, data, offset, task.row_bytes, keys);
      } else {
        for (unsigned i = lane; i < task.row_bytes; i += warp) {
          const auto* const byte = reinterpret_cast<const unsigned char*>(data + i);
          add_byte(sums, offset + i, static_cast<std::byte>(with_source ? __ldcg(byte) : *byte));
        }
      }
    }
    for (int step = warp / 2; step > 0; step /= 2) {
      sums.first += __shfl_down_sync(all_lanes, sums.first, step);
      sums.second += __shfl_down_sync(all_lanes, sums.second, step);
    }
    if (lane == 0 && (sums.first | sums.second) != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(results + 2 * task.result), sums.first);
      atomicAdd(reinterpret_cast<unsigned long long*>(results + 2 * task.result + 1), sums.second);
    }
  }
}

unsigned half_of_multiprocessors() {
  return (multiprocessors() + 1) / 2;
}

}  // namespace

cudaError_t launch_copy(const CopyTask* tasks, std::uint64_t count, const std::byte* source, std::byte* destination,
                        cudaStream_t stream) {
  copy_kernel<<<static_cast<unsigned>(count), 512, 0, stream>>>(tasks, source, destination);
  return cudaGetLastError();
}

cudaError_t launch_digest(const DigestTask* tasks, std::uint64_t count, const std::byte* base, std::uint64_t* results,
                          Share share, cudaStream_t stream) {
  // All: eight blocks of 256 threads fill a multiprocessor. Half: a block on every second one, 66 of an H100's 132.
  const std::uint64_t most = share == Share::all ? 8 * multiprocessors() : half_of_multiprocessors();
  const auto blocks = static_cast<unsigned>(std::min(count, most));
  digest_kernel<From::base><<<blocks, 256, 0, stream>>>(tasks, count, 0, base, results, nullptr);
  return cudaGetLastError();
}

cudaError_t launch_copy_and_digest(const DigestTask* tasks, std::uint64_t count, const CopySource& source,
                                   std::byte* base, std::uint64_t* results, Share share, cudaStream_t stream) {
  // A block for each task: 16 warps of a multiprocessor with 16 KiB each fit the L2 cache between write and read, and
  // the hardware starts the next block sooner than a loop the next task (1.73 ms for 2.47 GB on an H100, 2.00 so; a
  // copy alone 1.65).
  const auto choose = [&](auto copies, auto to_bf16, auto to_f16) {
    return !source.rounding ? copies : *source.rounding == NarrowFloat::bf16 ? to_bf16 : to_f16;
  };
  const auto kernel =
      source.marks == nullptr
          ? choose(digest_kernel<From::copy>, digest_kernel<From::bf16>, digest_kernel<From::f16>)
          : choose(digest_kernel<From::copy, true>, digest_kernel<From::bf16, true>, digest_kernel<From::f16, true>);
  const auto zero = reinterpret_cast<std::uintptr_t>(source.data) - (source.rounding ? 2 : 1) * source.offset;
  const auto blocks = share == Share::all ? count : std::min<std::uint64_t>(count, half_of_multiprocessors());
  kernel<<<static_cast<unsigned>(blocks), 256, 0, stream>>>(tasks, count, zero, base, results, source.marks);
  return cudaGetLastError();
}

}  // namespace weightcast::gpu
