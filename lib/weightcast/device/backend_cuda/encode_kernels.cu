#include <algorithm>
#include <cstdint>
#include <cub/block/block_scan.cuh>

#include "weightcast/device/backend_cuda/kernels.hpp"
#include "weightcast/device/backend_cuda/marks.hpp"

namespace weightcast::gpu {
namespace {

constexpr unsigned warp = 32, threads = 256, warps = threads / warp;
constexpr std::uint32_t all_lanes = 0xffffffffu;
constexpr unsigned block_units = delta_block_units;

// --- mark -----------------------------------------------------------------------------------------------------------

constexpr unsigned mark_bytes = 4096;  // of each version, by one warp: 64 words of marks

/// Sixteen 16-byte loads are in flight for each thread; the words of marks are nobody else's.
__global__ void __launch_bounds__(threads, 2)
    mark_kernel(const std::byte* before, const std::byte* after, std::uint64_t size_bytes, std::uint32_t* marks) {
  const std::uint64_t part = static_cast<std::uint64_t>(blockIdx.x) * warps + threadIdx.x / warp,
                      begin = part * mark_bytes;
  if (begin >= size_bytes) return;
  const unsigned lane = threadIdx.x % warp;
  std::uint32_t* const words = marks + begin / 64;
  const auto set = [&](unsigned word, std::uint32_t bits) {
    if (bits != 0) words[word] |= bits;
  };
  const bool aligned = (reinterpret_cast<std::uintptr_t>(before) | reinterpret_cast<std::uintptr_t>(after)) % 16 == 0;
  if (aligned && size_bytes - begin >= mark_bytes) {
    constexpr unsigned depth = mark_bytes / 16 / warp;
    const auto* const old_vectors = reinterpret_cast<const uint4*>(before + begin) + lane;
    const auto* const new_vectors = reinterpret_cast<const uint4*>(after + begin) + lane;
    uint4 olds[depth], news[depth];
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      olds[i] = __ldcs(old_vectors + i * warp);
      news[i] = __ldcs(new_vectors + i * warp);
    }
    std::uint32_t own = 0;
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      keep_own(own, i, joined_units(differing_units(olds[i], news[i])));
      if (i % 4 == 3) set((i - 3 + lane % 4) * (warp / 4) + lane / 4, own);
    }
    return;
  }
  const auto* const old_units = reinterpret_cast<const std::uint16_t*>(before + begin);
  const auto* const new_units = reinterpret_cast<const std::uint16_t*>(after + begin);
  const auto left = static_cast<unsigned>(min(size_bytes - begin, std::uint64_t{mark_bytes}) / delta_unit_bytes);
#pragma unroll 4
  for (unsigned first = 0; first < left; first += warp) {
    const unsigned at = first + lane;
    const std::uint32_t bits = __ballot_sync(all_lanes, at < left && old_units[at] != new_units[at]);
    if (lane == 0) set(first / warp, bits);
  }
}

// --- encode ---------------------------------------------------------------------------------------------------------

/// A block as its units lie in the source: numbers of units from its beginning on.
struct SourceBlock {
  std::uint64_t first = 0, pitch = 0;
  unsigned units = 0, row_units = 0;

  __device__ std::uint64_t unit(unsigned index) const {
    if (index < row_units) return first + index;
    return first + index / row_units * pitch + index % row_units;
  }
};

/// Looks blocks up, one after the other: most are of the same run as the one before.
class Cursor {
 public:
  __device__ explicit Cursor(const DeltaRuns& runs) : runs_(runs) {}

  __device__ SourceBlock at(std::uint64_t block) {
    if (block < run_.first_block || block >= end_) {
      run_ = run_of(runs_.runs, runs_.run_count, block);
      end_ = run_.first_block + run_.block_count();
    }
    if (run_.rows == 1) {
      const std::uint64_t column = (block - run_.first_block) * block_units;
      const auto units = static_cast<unsigned>(min(run_.row_units - column, std::uint64_t{block_units}));
      return {run_.source / delta_unit_bytes + column, 0, units, units};
    }
    const DeltaBlock rows = block_of(run_, block);
    const std::uint64_t pitch = run_.source_pitch / delta_unit_bytes;
    const auto units = static_cast<unsigned>(rows.units());
    return {(run_.source + rows.place(0, run_.source_pitch)) / delta_unit_bytes, pitch, units,
            pitch == rows.row_units ? units : static_cast<unsigned>(rows.row_units)};
  }

 private:
  DeltaRuns runs_;
  DeltaRun run_;
  std::uint64_t end_ = 0;
};

/// At most 32 bits, from that of `unit` on.
__device__ inline std::uint32_t marks_at(const std::uint32_t* marks, std::uint64_t unit, unsigned count) {
  const auto shift = static_cast<unsigned>(unit % 32);
  const std::uint32_t low = __ldg(marks + unit / 32), high = shift + count > 32 ? __ldg(marks + unit / 32 + 1) : 0;
  const std::uint32_t bits = __funnelshift_r(low, high, shift);
  return count == 32 ? bits : bits & ((1u << count) - 1);
}

/// Those of the block's units 32 * word and the 31 behind it; of narrow rows, row after row.
__device__ inline std::uint32_t marks_of(const std::uint32_t* marks, const SourceBlock& block, unsigned word) {
  const unsigned end = min(32 * word + 32, block.units);
  std::uint32_t bits = 0;
  for (unsigned i = 32 * word; i < end;) {
    const unsigned left = block.row_units - (i < block.row_units ? i : i % block.row_units), count = min(left, end - i);
    bits |= marks_at(marks, block.unit(i), count) << i % 32;
    i += count;
  }
  return bits;
}

constexpr unsigned lane_words = block_units / 32 / warp;  // of a block's marks, in each lane
constexpr unsigned tile_blocks = threads;                 // whose entries are counted by one thread block
constexpr unsigned tile_threads = 512;

/// starts[b] becomes the number of entries in the tile before block b.
__global__ void __launch_bounds__(threads)
    count_kernel(DeltaRuns runs, const std::uint32_t* marks, std::uint64_t* starts, std::uint64_t* tile_starts) {
  using Scan = cub::BlockScan<std::uint32_t, threads>;
  __shared__ Scan::TempStorage scan;
  __shared__ std::uint32_t counts[tile_blocks];
  const unsigned lane = threadIdx.x % warp;
  const std::uint64_t first = static_cast<std::uint64_t>(blockIdx.x) * tile_blocks;
  Cursor cursor(runs);
  for (unsigned i = threadIdx.x / warp; i < tile_blocks; i += warps) {
    std::uint32_t count = 0;
    if (first + i < runs.block_count) {
      const SourceBlock block = cursor.at(first + i);
#pragma unroll
      for (unsigned k = 0; k < lane_words; ++k) count += __popc(marks_of(marks, block, k * warp + lane));
    }
    count = __reduce_add_sync(all_lanes, count);
    if (lane == 0) counts[i] = count;
  }
  __syncthreads();
  std::uint32_t before = 0, total = 0;
  Scan(scan).ExclusiveSum(counts[threadIdx.x], before, total);
  if (first + threadIdx.x < runs.block_count) starts[first + threadIdx.x] = before;
  if (threadIdx.x == 0) tile_starts[blockIdx.x] = total;
}

/// One thread block: tiles' numbers of entries become those before them, and *end that of all.
__global__ void __launch_bounds__(tile_threads)
    tile_kernel(std::uint64_t* tile_starts, std::uint64_t tile_count, std::uint64_t* end) {
  using Scan = cub::BlockScan<std::uint64_t, tile_threads>;
  __shared__ Scan::TempStorage scan;
  std::uint64_t carry = 0;
  for (std::uint64_t first = 0; first < tile_count; first += tile_threads) {
    const std::uint64_t i = first + threadIdx.x;
    std::uint64_t before = 0, total = 0;
    Scan(scan).ExclusiveSum(i < tile_count ? tile_starts[i] : 0, before, total);
    if (i < tile_count) tile_starts[i] = carry + before;
    carry += total;
    __syncthreads();  // the scan's memory is used again
  }
  if (threadIdx.x == 0) *end = carry;
}

constexpr unsigned list_units = 32 * warp;   // listed at a time at most: a word of each lane
constexpr unsigned emit_blocks = 8 * warps;  // by one thread block, warps on neighbours

/// A warp writes the entries of `count` units whose numbers in the block are listed.
__device__ void write_entries(const std::uint16_t* list, unsigned count, const SourceBlock& block,
                              const std::uint16_t* source, std::uint32_t* entries) {
  constexpr unsigned depth = 4;
  for (unsigned first = threadIdx.x % warp; first < count; first += depth * warp) {
    std::uint32_t made[depth];
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      if (first + i * warp >= count) continue;
      const unsigned index = list[first + i * warp];
      made[i] = index | static_cast<std::uint32_t>(source[block.unit(index)]) << 16;
    }
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      if (first + i * warp < count) entries[first + i * warp] = made[i];
    }
  }
}

/// Starts of blocks become those of the stream.
__global__ void __launch_bounds__(threads)
    emit_kernel(DeltaRuns runs, const std::uint32_t* marks, const std::uint16_t* source, std::uint64_t* starts,
                const std::uint64_t* tile_starts, std::uint32_t* entries, std::uint64_t capacity) {
  __shared__ std::uint16_t lists[warps][list_units];
  std::uint16_t* const list = lists[threadIdx.x / warp];
  const unsigned lane = threadIdx.x % warp;
  Cursor cursor(runs);
  for (unsigned n = threadIdx.x / warp; n < emit_blocks; n += warps) {
    const std::uint64_t number = static_cast<std::uint64_t>(blockIdx.x) * emit_blocks + n;
    if (number >= runs.block_count) return;
    const std::uint64_t start =
        __shfl_sync(all_lanes, lane == 0 ? starts[number] + tile_starts[number / tile_blocks] : 0, 0);
    const SourceBlock block = cursor.at(number);
    std::uint32_t words[lane_words], before[lane_words], ends[lane_words], total = 0;
#pragma unroll
    for (unsigned k = 0; k < lane_words; ++k) words[k] = marks_of(marks, block, k * warp + lane);
#pragma unroll
    for (unsigned k = 0; k < lane_words; ++k) {
      std::uint32_t sum = __popc(words[k]);
      for (unsigned step = 1; step < warp; step *= 2) {
        const std::uint32_t below = __shfl_up_sync(all_lanes, sum, step);
        if (lane >= step) sum += below;
      }
      before[k] = total + sum - __popc(words[k]);
      total += __shfl_sync(all_lanes, sum, warp - 1);
      ends[k] = total;
    }
    if (lane == 0) starts[number] = start;
    std::uint32_t listed = 0;
#pragma unroll
    for (unsigned k = 0; k < lane_words; ++k) {
      std::uint16_t* next = list + (before[k] - listed);
      for (std::uint32_t word = words[k]; word != 0; word &= word - 1)
        *next++ = static_cast<std::uint16_t>(32 * (k * warp + lane) + __ffs(static_cast<int>(word)) - 1);
      if (total <= list_units && k + 1 < lane_words) continue;  // few: all at once
      __syncwarp();
      const std::uint64_t from = start + listed, count = ends[k] - listed;
      if (from < capacity)
        write_entries(list, static_cast<unsigned>(min(count, capacity - from)), block, source, entries + from);
      __syncwarp();
      listed = ends[k];
    }
  }
}

}  // namespace

cudaError_t launch_mark(const std::byte* before, const std::byte* after, std::uint64_t size_bytes, std::uint32_t* marks,
                        cudaStream_t stream) {
  mark_kernel<<<static_cast<unsigned>(quotient_up(size_bytes, mark_bytes * warps)), threads, 0, stream>>>(
      before, after, size_bytes, marks);
  return cudaGetLastError();
}

std::uint64_t scratch_bytes_to_encode(std::uint64_t block_count) noexcept {
  return std::max<std::uint64_t>(quotient_up(block_count, tile_blocks), 1) * sizeof(std::uint64_t);
}

cudaError_t launch_encode(const DeltaRuns& runs, const std::uint32_t* marks, const std::byte* source,
                          std::uint64_t* starts, DeltaEntry* entries, std::uint64_t capacity, std::byte* scratch,
                          cudaStream_t stream) {
  auto* const tile_starts = reinterpret_cast<std::uint64_t*>(scratch);
  const std::uint64_t tiles = quotient_up(runs.block_count, tile_blocks);
  if (tiles > 0) count_kernel<<<static_cast<unsigned>(tiles), threads, 0, stream>>>(runs, marks, starts, tile_starts);
  tile_kernel<<<1, tile_threads, 0, stream>>>(tile_starts, tiles, starts + runs.block_count);
  if (tiles > 0) {
    emit_kernel<<<static_cast<unsigned>(quotient_up(runs.block_count, emit_blocks)), threads, 0, stream>>>(
        runs, marks, reinterpret_cast<const std::uint16_t*>(source), starts, tile_starts,
        reinterpret_cast<std::uint32_t*>(entries), capacity);
  }
  return cudaGetLastError();
}

}  // namespace weightcast::gpu
