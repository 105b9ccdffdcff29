#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "weightcast/device/backend_cuda/kernels.hpp"
#include "weightcast/device/backend_cuda/marks.hpp"
#include "weightcast/device/backend_cuda/warp_runs.hpp"
#include "weightcast/device/digest_keys.hpp"

namespace weightcast::gpu {
namespace {

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
    flush_sums(sums, results + 2 * task.result);
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
