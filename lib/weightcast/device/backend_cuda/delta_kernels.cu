#include <algorithm>
#include <cstdint>

#include "weightcast/device/backend_cuda/kernels.hpp"
#include "weightcast/device/digest_keys.hpp"

namespace weightcast::gpu {
namespace {

constexpr unsigned warp = 32, threads = 256, warps = threads / warp;
constexpr std::uint32_t all_lanes = 0xffffffffu;
constexpr unsigned block_units = delta_block_units;

// A constant of the program: the driver loads it with the kernels, once for each GPU that a process uses.
__constant__ const digest_keys::KeyTable constant_keys = digest_keys::make_key_table();

/// Neighbouring blocks that one warp takes together, lane j knowing block j: so that the entries of all are loaded at
/// once, also where each block has few.
struct Group {
  std::uint64_t first = 0;
  unsigned blocks = 0;

  /// The first of this warp's from `begin` on; then its next ones.
  __device__ Group(std::uint64_t begin, std::uint64_t end, unsigned most)
      : first(begin + (static_cast<std::uint64_t>(blockIdx.x) * warps + threadIdx.x / warp) * most) {
    count(end, most);
  }
  __device__ void next(std::uint64_t end, unsigned most) {
    first += static_cast<std::uint64_t>(gridDim.x) * warps * most;
    count(end, most);
  }

 private:
  __device__ void count(std::uint64_t end, unsigned most) {
    blocks = first < end ? static_cast<unsigned>(min(end - first, std::uint64_t{most})) : 0;
  }
};

/// The block of an entry: the last whose first entry is not behind it.
__device__ inline unsigned block_at(const std::uint32_t* first_entries, std::uint32_t entry) {
  unsigned block = 0;
#pragma unroll
  for (unsigned step = warp / 2; step > 0; step /= 2) {
    if (first_entries[block + step] <= entry) block += step;
  }
  return block;
}

/// Of starts, and of entries where there are some.
template <bool with_entries>
__global__ void __launch_bounds__(threads)
    check_kernel(DeltaRuns runs, unsigned group_blocks, const std::uint64_t* starts, const std::uint32_t* entries,
                 std::uint64_t capacity, std::uint32_t* bad) {
  __shared__ std::uint32_t first_entries[warps][warp], units_of[warps][warp];
  const unsigned lane = threadIdx.x % warp;
  const Group group(0, runs.block_count, group_blocks);
  if (blockIdx.x == 0 && threadIdx.x == 0 && starts[0] != 0) *bad = 1;
  if (group.blocks == 0) return;
  std::uint32_t* const firsts = first_entries[threadIdx.x / warp];
  std::uint32_t* const units = units_of[threadIdx.x / warp];
  const bool mine = lane < group.blocks;
  std::uint64_t start = 0, end = 0;
  bool good = true;
  if (mine) {
    const std::uint64_t number = group.first + lane;
    start = starts[number];
    end = starts[number + 1];
    units[lane] = static_cast<std::uint32_t>(block_of(run_of(runs.runs, runs.run_count, number), number).units());
    good = start <= end && end <= capacity && end - start <= units[lane];
  }
  // Not one entry is read where the starts are not good.
  if (!__all_sync(all_lanes, good)) {
    if (lane == 0) *bad = 1;
    return;
  }
  if constexpr (!with_entries) return;
  const std::uint64_t first = __shfl_sync(all_lanes, start, 0),
                      last = __shfl_sync(all_lanes, end, static_cast<int>(group.blocks - 1));
  const auto count = static_cast<std::uint32_t>(last - first);
  firsts[lane] = mine ? static_cast<std::uint32_t>(start - first) : count;
  __syncwarp();
#pragma unroll 4
  for (std::uint32_t i = lane; i < count; i += warp) {
    const std::uint32_t entry = entries[first + i], before = entries[first + i - (i == 0 ? 0 : 1)];
    const unsigned block = block_at(firsts, i), index = entry & 0xffff;
    const bool ascends = i == firsts[block] || (before & 0xffff) < index;
    good = good && index < units[block] && ascends;
  }
  if (!good) *bad = 1;
}

/// Where the blocks of a group lie, for all of its lanes.
struct Places {
  std::uint64_t slot[warp], slot_pitch[warp], offset[warp], parameter_pitch[warp];
  std::uint32_t first_entry[warp], units[warp], row_units[warp], parameter[warp];
};

/// The digest of changes, by one lane: added up until another parameter's come.
struct Change {
  static constexpr std::uint32_t none = 0xffffffffu;
  std::uint64_t first = 0, second = 0;
  std::uint32_t parameter = none;

  __device__ void add(std::uint32_t of, std::uint64_t offset, std::uint32_t before, std::uint32_t after,
                      const std::uint32_t (&keys)[2][digest_keys::block_words], std::uint64_t* sums) {
    if (of != parameter) {
      flush(sums);
      parameter = of;
    }
    const std::uint64_t word = offset / 4, block = word / digest_keys::block_words,
                        change = (static_cast<std::uint64_t>(after) - before) << 8 * (offset % 4);
    const auto j = static_cast<unsigned>(word % digest_keys::block_words);
    first += digest_keys::block_factor(0, block) * (keys[0][j] * change);
    second += digest_keys::block_factor(1, block) * (keys[1][j] * change);
  }
  __device__ void flush(std::uint64_t* sums) {
    if (first != 0) atomicAdd(reinterpret_cast<unsigned long long*>(sums + 2ull * parameter), first);
    if (second != 0) atomicAdd(reinterpret_cast<unsigned long long*>(sums + 2ull * parameter + 1), second);
    first = second = 0;
  }
  /// Of all lanes: in one where they have the same parameter, as they nearly always have.
  __device__ void flush_all(std::uint64_t* sums) {
    const unsigned some = __ballot_sync(all_lanes, parameter != none);
    if (some == 0) return;
    const std::uint32_t one = __shfl_sync(all_lanes, parameter, __ffs(static_cast<int>(some)) - 1);
    if (__all_sync(all_lanes, parameter == none || parameter == one)) {
      for (int step = warp / 2; step > 0; step /= 2) {
        first += __shfl_down_sync(all_lanes, first, step);
        second += __shfl_down_sync(all_lanes, second, step);
      }
      parameter = one;
      if (threadIdx.x % warp != 0) return;
    }
    flush(sums);
  }
};

/// What a warp applies: a group of blocks with `count` entries from `entries` on.
template <bool swap, bool checks, bool digests>
__device__ void apply_group(const Places& places, std::uint32_t* entries, std::uint32_t count, std::byte* slot,
                            const std::uint32_t (&keys)[2][digest_keys::block_words], Change& change,
                            std::uint64_t* sums, std::uint32_t* bad) {
  constexpr unsigned depth = 4;  // entries in flight for each lane
  const unsigned lane = threadIdx.x % warp;
  std::uint32_t last = 0;  // entry before those at hand
  bool good = true;
  for (std::uint32_t begin = 0; begin < count; begin += depth * warp) {
    std::uint32_t news[depth], olds[depth], blocks[depth];
    std::uint64_t offsets[depth];
    std::uint16_t* units[depth];
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      const std::uint32_t entry = begin + i * warp + lane;
      news[i] = entry < count ? __ldcs(entries + entry) : 0;
    }
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      const std::uint32_t entry = begin + i * warp + lane;
      std::uint32_t before = 0;
      if constexpr (checks) {
        before = __shfl_up_sync(all_lanes, news[i], 1);
        if (lane == 0) before = last;
        last = __shfl_sync(all_lanes, news[i], warp - 1);
      }
      units[i] = nullptr;
      if (entry >= count) continue;
      const unsigned block = block_at(places.first_entry, entry), row_units = places.row_units[block];
      unsigned row = 0, column = news[i] & 0xffff;
      if constexpr (checks) {
        const bool own = column < places.units[block];
        good = good && own && (entry == places.first_entry[block] || (before & 0xffff) < column);
        if (!own) continue;
      }
      if (column >= row_units) {
        row = column / row_units;
        column %= row_units;
      }
      units[i] = reinterpret_cast<std::uint16_t*>(slot + places.slot[block] + row * places.slot_pitch[block]) + column;
      offsets[i] = places.offset[block] + row * places.parameter_pitch[block] + column * delta_unit_bytes;
      blocks[i] = block;
      olds[i] = *units[i];
    }
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      if (units[i] == nullptr) continue;
      *units[i] = static_cast<std::uint16_t>(news[i] >> 16);
      if constexpr (swap) entries[begin + i * warp + lane] = (news[i] & 0xffff) | olds[i] << 16;
      if constexpr (digests) change.add(places.parameter[blocks[i]], offsets[i], olds[i], news[i] >> 16, keys, sums);
    }
  }
  if (checks && !good) *bad = 1;
}

/// `found`: nullptr for all blocks.
template <bool swap, bool checks, bool digests>
__global__ void __launch_bounds__(threads, 4)
    apply_kernel(DeltaRuns runs, const std::uint64_t* found, unsigned group_blocks, const std::uint64_t* starts,
                 std::uint32_t* entries, std::byte* slot, std::uint64_t* sums, std::uint32_t* bad) {
  __shared__ Places places_of[warps];
  __shared__ std::uint32_t keys[2][digest_keys::block_words];
  if (*bad != 0) return;
  const std::uint64_t begin = found == nullptr ? 0 : found[0], end = found == nullptr ? runs.block_count : found[1];
  if (begin + static_cast<std::uint64_t>(blockIdx.x) * warps * group_blocks >= end) return;
  if constexpr (digests) {
    for (unsigned i = threadIdx.x; i < 2 * digest_keys::block_words; i += threads) {
      keys[i / digest_keys::block_words][i % digest_keys::block_words] =
          constant_keys.lane[i / digest_keys::block_words][i % digest_keys::block_words];
    }
    __syncthreads();
  }
  const unsigned lane = threadIdx.x % warp;
  Places& places = places_of[threadIdx.x / warp];
  Change change;
  for (Group group(begin, end, group_blocks); group.blocks != 0; group.next(end, group_blocks)) {
    const std::uint64_t first = starts[group.first];
    const auto count = static_cast<std::uint32_t>(starts[group.first + group.blocks] - first);
    if (count == 0) continue;
    __syncwarp();
    places.first_entry[lane] = count;
    if (lane < group.blocks) {
      const std::uint64_t number = group.first + lane;
      const DeltaRun& run = run_of(runs.runs, runs.run_count, number);
      const DeltaBlock block = block_of(run, number);
      places.first_entry[lane] = static_cast<std::uint32_t>(starts[number] - first);
      places.slot[lane] = run.slot + block.place(0, run.slot_pitch);
      places.slot_pitch[lane] = run.slot_pitch;
      places.offset[lane] = run.offset + block.place(0, run.parameter_pitch);
      places.parameter_pitch[lane] = run.parameter_pitch;
      places.units[lane] = static_cast<std::uint32_t>(block.units());
      places.row_units[lane] = block.rows == 1 ? block_units : static_cast<std::uint32_t>(block.row_units);
      places.parameter[lane] = static_cast<std::uint32_t>(run.parameter_index);
    }
    __syncwarp();
    apply_group<swap, checks, digests>(places, entries + first, count, slot, keys, change, sums, bad);
  }
  if constexpr (digests) change.flush_all(sums);
}

/// Blocks to a warp: all 32 where there are enough for each multiprocessor to have all the warps that it can.
unsigned group_of(std::uint64_t blocks) {
  return static_cast<unsigned>(std::clamp<std::uint64_t>(blocks / (64 * multiprocessors()), 1, warp));
}
unsigned group_grid(std::uint64_t blocks, unsigned group_blocks) {
  return static_cast<unsigned>(std::max<std::uint64_t>(quotient_up(blocks, group_blocks * warps), 1));
}

}  // namespace

cudaError_t launch_check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries,
                               std::uint64_t capacity, std::uint32_t* bad, cudaStream_t stream) {
  const unsigned group_blocks = group_of(runs.block_count);
  check_kernel<true><<<group_grid(runs.block_count, group_blocks), threads, 0, stream>>>(
      runs, group_blocks, starts, reinterpret_cast<const std::uint32_t*>(entries), capacity, bad);
  return cudaGetLastError();
}

cudaError_t launch_check_starts(const DeltaRuns& runs, const std::uint64_t* starts, std::uint64_t capacity,
                                std::uint32_t* bad, cudaStream_t stream) {
  const unsigned group_blocks = group_of(runs.block_count);
  check_kernel<false><<<group_grid(runs.block_count, group_blocks), threads, 0, stream>>>(runs, group_blocks, starts,
                                                                                          nullptr, capacity, bad);
  return cudaGetLastError();
}

cudaError_t launch_apply_delta(const DeltaRuns& runs, const std::uint64_t* starts, DeltaEntry* entries, bool swap,
                               std::byte* slot, std::uint64_t* sums, const std::uint32_t* bad, cudaStream_t stream) {
  const auto kernel = sums == nullptr ? (swap ? apply_kernel<true, false, false> : apply_kernel<false, false, false>)
                                      : (swap ? apply_kernel<true, false, true> : apply_kernel<false, false, true>);
  const unsigned group_blocks = group_of(runs.block_count);
  kernel<<<group_grid(runs.block_count, group_blocks), threads, 0, stream>>>(
      runs, nullptr, group_blocks, starts, reinterpret_cast<std::uint32_t*>(entries), slot, sums,
      const_cast<std::uint32_t*>(bad));
  return cudaGetLastError();
}

cudaError_t launch_apply_piece(const DeltaPiece& piece, std::byte* slot, std::uint64_t* sums, std::uint32_t* bad,
                               cudaStream_t stream) {
  const auto error = launch_find_blocks(piece, bad, stream);
  if (error != cudaSuccess) return error;
  const auto kernel = sums == nullptr ? apply_kernel<false, true, false> : apply_kernel<false, true, true>;
  const unsigned group_blocks = group_of(piece.blocks_about);
  // Without `swap` it only reads entries.
  auto* const entries = reinterpret_cast<std::uint32_t*>(const_cast<DeltaEntry*>(piece.entries));
  kernel<<<group_grid(piece.blocks_about, group_blocks), threads, 0, stream>>>(piece.runs, piece.found, group_blocks,
                                                                               piece.starts, entries, slot, sums, bad);
  return cudaGetLastError();
}

}  // namespace weightcast::gpu
