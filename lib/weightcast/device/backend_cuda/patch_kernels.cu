#include <algorithm>
#include <cstdint>

#include "weightcast/device/backend_cuda/kernels.hpp"
#include "weightcast/device/backend_cuda/warp_runs.hpp"

namespace weightcast::gpu {
namespace {

constexpr unsigned threads = 256, warps = threads / warp;
/// Neighbouring blocks for a thread block at a time, each warp every eighth: 256 KiB.
constexpr unsigned group_blocks = 4 * warps;

// A constant of the program: the driver loads it with the kernels, once for each GPU that a process uses.
__constant__ const digest_keys::KeyTable constant_keys = digest_keys::make_key_table();

/// Each thread block looks for one end: all its threads probe at once, because each probe is a wait for the memory.
__global__ void __launch_bounds__(threads)
    find_kernel(const std::uint64_t* starts, std::uint64_t block_count, std::uint64_t first, std::uint64_t last,
                std::uint64_t* found, const std::uint32_t* bad) {
  const std::uint64_t entries = blockIdx.x == 0 ? first : last;
  // Blocks before `low` are complete, those from `high` on are not.
  std::uint64_t high = *bad != 0 || entries == 0 ? 0 : block_count, low = entries == every_entry ? high : 0;
  while (low < high) {
    const std::uint64_t step = (high - low + threads - 1) / threads, probe = low + (threadIdx.x + 1) * step - 1;
    const int steps = __syncthreads_count(probe < high && starts[probe + 1] <= entries ? 1 : 0);
    low += static_cast<unsigned>(steps) * step;
    high = min(high, low + step - 1);
  }
  if (threadIdx.x == 0) found[blockIdx.x] = low;
}

__device__ inline bool aligned(std::uint64_t places) {
  return places % 16 == 0;
}
__device__ inline std::uint64_t number_of(const std::byte* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

/// A warp copies `count` units.
__device__ void copy_units(std::byte* to, const std::byte* from, unsigned count) {
  if (aligned(number_of(to) | number_of(from) | count * delta_unit_bytes)) {
    copy_run(to, from, static_cast<unsigned>(count * delta_unit_bytes));
    return;
  }
  auto* const out = reinterpret_cast<std::uint16_t*>(to);
  const auto* const in = reinterpret_cast<const std::uint16_t*>(from);
#pragma unroll 4
  for (unsigned i = threadIdx.x % warp; i < count; i += warp) out[i] = __ldcs(in + i);
}

/// A warp digests what it has just written.
__device__ void digest_units(Sums& sums, const std::byte* data, std::uint64_t offset, unsigned count,
                             const std::uint32_t (&keys)[2][digest_keys::block_words]) {
  if (aligned(number_of(data) | offset | count * delta_unit_bytes)) {
    digest_run<true>(sums, data, offset, count * delta_unit_bytes, keys);
    return;
  }
  for (unsigned i = threadIdx.x % warp; i < count; i += warp) {
    const std::uint64_t place = offset + i * delta_unit_bytes, word = place / 4;
    const auto j = static_cast<unsigned>(word % digest_keys::block_words);
    const std::uint64_t unit = __ldcg(reinterpret_cast<const unsigned short*>(data) + i),
                        bits = unit << 8 * (place % 4);
    sums.first += digest_keys::block_factor(0, word / digest_keys::block_words) * (keys[0][j] * bits);
    sums.second += digest_keys::block_factor(1, word / digest_keys::block_words) * (keys[1][j] * bits);
  }
}

/// A block as it lies in both slots: rows of units.
struct Rows {
  std::byte* data;
  std::uint64_t pitch;
  unsigned row_units, units;
};

constexpr unsigned depth = 4;  // entries in flight for each lane

__device__ inline void load_entries(std::uint32_t (&ahead)[depth], const std::uint32_t* entries, unsigned begin,
                                    unsigned count) {
#pragma unroll
  for (unsigned i = 0; i < depth; ++i) {
    const unsigned entry = begin + i * warp + threadIdx.x % warp;
    ahead[i] = entry < count ? __ldcs(entries + entry) : 0;
  }
}

/// A warp writes a block's entries, the first of which it has at hand; whether all fit.
__device__ bool write_entries(const Rows& rows, std::uint32_t (&ahead)[depth], const std::uint32_t* entries,
                              unsigned count) {
  const unsigned lane = threadIdx.x % warp;
  const bool one_row = rows.pitch == rows.row_units * delta_unit_bytes;
  std::uint32_t last = 0;  // entry before those at hand
  bool good = true;
  for (unsigned begin = 0; begin < count; begin += depth * warp) {
    if (begin != 0) load_entries(ahead, entries, begin, count);
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      const unsigned entry = begin + i * warp + lane, index = ahead[i] & 0xffff;
      std::uint32_t before = __shfl_up_sync(all_lanes, ahead[i], 1);
      if (lane == 0) before = last;
      last = __shfl_sync(all_lanes, ahead[i], warp - 1);
      if (entry >= count) continue;
      good = good && index < rows.units && (entry == 0 || (before & 0xffff) < index);
      if (index >= rows.units) continue;
      const std::uint64_t place = one_row
                                      ? index * delta_unit_bytes
                                      : index / rows.row_units * rows.pitch + index % rows.row_units * delta_unit_bytes;
      *reinterpret_cast<std::uint16_t*>(rows.data + place) = static_cast<std::uint16_t>(ahead[i] >> 16);
    }
  }
  return good;
}

/// A warp makes one block: copied, the new bits over it, and what lies there then is digested, all while it is in the
/// cache.
template <bool digests>
__device__ bool patch_block(const DeltaRun& run, std::uint64_t number, const std::uint64_t* starts,
                            const std::uint32_t* entries, const std::byte* base, std::byte* slot, Sums& sums,
                            const std::uint32_t (&keys)[2][digest_keys::block_words]) {
  const std::uint64_t first = starts[number];
  const auto count = static_cast<unsigned>(starts[number + 1] - first);
  std::uint32_t ahead[depth];
  load_entries(ahead, entries + first, 0, count);
  const DeltaBlock block = block_of(run, number);
  const std::uint64_t place = run.slot + block.place(0, run.slot_pitch),
                      offset = run.offset + block.place(0, run.parameter_pitch);
  const auto row_units = static_cast<unsigned>(block.row_units), row_count = static_cast<unsigned>(block.rows);
  const unsigned units = row_units * row_count;
  const std::uint64_t row_bytes = row_units * delta_unit_bytes, pitch = row_count == 1 ? row_bytes : run.slot_pitch;
  // Rows that follow each other are one, in the slots and in the parameter.
  const bool together = pitch == row_bytes,
             digested_together = together && (row_count == 1 || run.parameter_pitch == pitch);
  for (unsigned row = 0; row < (together ? 1 : row_count); ++row)
    copy_units(slot + place + row * pitch, base + place + row * pitch, together ? units : row_units);
  __syncwarp();
  const bool good = write_entries({slot + place, pitch, row_units, units}, ahead, entries + first, count);
  if constexpr (digests) {
    __syncwarp();
    for (unsigned row = 0; row < (digested_together ? 1 : row_count); ++row) {
      digest_units(sums, slot + place + row * pitch, offset + row * run.parameter_pitch,
                   digested_together ? units : row_units, keys);
    }
  }
  return good;
}

template <bool digests>
__global__ void __launch_bounds__(threads, 2)
    patch_kernel(DeltaRuns runs, const std::uint64_t* found, const std::uint64_t* starts, const std::uint32_t* entries,
                 const std::byte* base, std::byte* slot, std::uint64_t* results, std::uint32_t* bad) {
  __shared__ alignas(16) std::uint32_t keys[2][digest_keys::block_words];
  const std::uint64_t begin = found[0] + static_cast<std::uint64_t>(blockIdx.x) * group_blocks, end = found[1];
  if (begin >= end) return;
  if constexpr (digests) {
    for (unsigned i = threadIdx.x; i < 2 * digest_keys::block_words; i += threads) {
      keys[i / digest_keys::block_words][i % digest_keys::block_words] =
          constant_keys.lane[i / digest_keys::block_words][i % digest_keys::block_words];
    }
    __syncthreads();
  }
  constexpr std::uint64_t nowhere = ~std::uint64_t{0};
  const DeltaRun* run = nullptr;
  std::uint64_t run_end = 0, parameter = nowhere;
  Sums sums;
  bool good = true;
  for (std::uint64_t group = begin; group < end; group += static_cast<std::uint64_t>(gridDim.x) * group_blocks) {
    for (std::uint64_t number = group + threadIdx.x / warp; number < min(end, group + group_blocks); number += warps) {
      if (number >= run_end) {
        run = &run_of(runs.runs, runs.run_count, number);
        run_end = run + 1 == runs.runs + runs.run_count ? nowhere : run[1].first_block;
        if (digests && run->parameter_index != parameter) {
          if (parameter != nowhere) flush_sums(sums, results + 2 * parameter);
          parameter = run->parameter_index;
        }
      }
      good = patch_block<digests>(*run, number, starts, entries, base, slot, sums, keys) && good;
    }
  }
  if (digests && parameter != nowhere) flush_sums(sums, results + 2 * parameter);
  if (!good) *bad = 1;
}

}  // namespace

cudaError_t launch_find_blocks(const DeltaPiece& piece, const std::uint32_t* bad, cudaStream_t stream) {
  find_kernel<<<2, threads, 0, stream>>>(piece.starts, piece.runs.block_count, piece.first, piece.last, piece.found,
                                         bad);
  return cudaGetLastError();
}

cudaError_t launch_patch_and_digest(const DeltaPiece& piece, const std::byte* base, std::byte* slot,
                                    std::uint64_t* sums, std::uint32_t* bad, cudaStream_t stream) {
  const auto error = launch_find_blocks(piece, bad, stream);
  if (error != cudaSuccess) return error;
  // A thread block for each group where the guess is good: the hardware starts the next one sooner than a loop.
  const auto grid = std::max<std::uint64_t>(quotient_up(piece.blocks_about, group_blocks), 1);
  const auto kernel = sums == nullptr ? patch_kernel<false> : patch_kernel<true>;
  kernel<<<static_cast<unsigned>(grid), threads, 0, stream>>>(piece.runs, piece.found, piece.starts,
                                                              reinterpret_cast<const std::uint32_t*>(piece.entries),
                                                              base, slot, sums, bad);
  return cudaGetLastError();
}

}  // namespace weightcast::gpu
