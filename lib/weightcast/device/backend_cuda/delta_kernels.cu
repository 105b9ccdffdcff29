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

  __device__ Group(const DeltaRuns& runs, unsigned most)
      : first((static_cast<std::uint64_t>(blockIdx.x) * warps + threadIdx.x / warp) * most),
        blocks(first < runs.block_count ? static_cast<unsigned>(min(runs.block_count - first, std::uint64_t{most}))
                                        : 0) {}
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

__global__ void __launch_bounds__(threads)
    check_kernel(DeltaRuns runs, unsigned group_blocks, const std::uint64_t* starts, const std::uint32_t* entries,
                 std::uint64_t capacity, std::uint32_t* bad) {
  __shared__ std::uint32_t first_entries[warps][warp], units_of[warps][warp];
  const unsigned lane = threadIdx.x % warp;
  const Group group(runs, group_blocks);
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
  std::uint32_t first_entry[warp], row_units[warp], parameter[warp];
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

template <bool swap, bool digests>
__global__ void __launch_bounds__(threads, 4)
    apply_kernel(DeltaRuns runs, unsigned group_blocks, const std::uint64_t* starts, std::uint32_t* entries,
                 std::byte* slot, std::uint64_t* sums, const std::uint32_t* bad) {
  __shared__ Places places_of[warps];
  __shared__ std::uint32_t keys[2][digest_keys::block_words];
  if (*bad != 0) return;
  if constexpr (digests) {
    for (unsigned i = threadIdx.x; i < 2 * digest_keys::block_words; i += threads) {
      keys[i / digest_keys::block_words][i % digest_keys::block_words] =
          constant_keys.lane[i / digest_keys::block_words][i % digest_keys::block_words];
    }
    __syncthreads();
  }
  const unsigned lane = threadIdx.x % warp;
  const Group group(runs, group_blocks);
  if (group.blocks == 0) return;
  const std::uint64_t first = starts[group.first];
  const auto count = static_cast<std::uint32_t>(starts[group.first + group.blocks] - first);
  if (count == 0) return;
  Places& places = places_of[threadIdx.x / warp];
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
    places.row_units[lane] = block.rows == 1 ? block_units : static_cast<std::uint32_t>(block.row_units);
    places.parameter[lane] = static_cast<std::uint32_t>(run.parameter_index);
  }
  __syncwarp();
  constexpr unsigned depth = 4;  // entries in flight for each lane
  Change change;
  for (std::uint32_t begin = lane; begin < count; begin += depth * warp) {
    std::uint32_t news[depth], olds[depth], blocks[depth];
    std::uint64_t offsets[depth];
    std::uint16_t* units[depth];
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      if (begin + i * warp < count) news[i] = __ldcs(entries + first + begin + i * warp);
    }
#pragma unroll
    for (unsigned i = 0; i < depth; ++i) {
      if (begin + i * warp >= count) continue;
      const unsigned block = block_at(places.first_entry, begin + i * warp), row_units = places.row_units[block];
      unsigned row = 0, column = news[i] & 0xffff;
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
      if (begin + i * warp >= count) continue;
      *units[i] = static_cast<std::uint16_t>(news[i] >> 16);
      if constexpr (swap) entries[first + begin + i * warp] = (news[i] & 0xffff) | olds[i] << 16;
      if constexpr (digests) change.add(places.parameter[blocks[i]], offsets[i], olds[i], news[i] >> 16, keys, sums);
    }
  }
  if constexpr (digests) change.flush_all(sums);
}

/// Blocks to a warp: all 32 where there are enough for each multiprocessor to have all the warps that it can.
unsigned group_of(const DeltaRuns& runs) {
  return static_cast<unsigned>(std::clamp<std::uint64_t>(runs.block_count / (64 * multiprocessors()), 1, warp));
}
unsigned group_grid(const DeltaRuns& runs, unsigned group_blocks) {
  return static_cast<unsigned>(std::max<std::uint64_t>(quotient_up(runs.block_count, group_blocks * warps), 1));
}

}  // namespace

cudaError_t launch_check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries,
                               std::uint64_t capacity, std::uint32_t* bad, cudaStream_t stream) {
  const unsigned group_blocks = group_of(runs);
  check_kernel<<<group_grid(runs, group_blocks), threads, 0, stream>>>(
      runs, group_blocks, starts, reinterpret_cast<const std::uint32_t*>(entries), capacity, bad);
  return cudaGetLastError();
}

cudaError_t launch_apply_delta(const DeltaRuns& runs, const std::uint64_t* starts, DeltaEntry* entries, bool swap,
                               std::byte* slot, std::uint64_t* sums, const std::uint32_t* bad, cudaStream_t stream) {
  const auto kernel = sums == nullptr ? (swap ? apply_kernel<true, false> : apply_kernel<false, false>)
                                      : (swap ? apply_kernel<true, true> : apply_kernel<false, true>);
  const unsigned group_blocks = group_of(runs);
  kernel<<<group_grid(runs, group_blocks), threads, 0, stream>>>(
      runs, group_blocks, starts, reinterpret_cast<std::uint32_t*>(entries), slot, sums, bad);
  return cudaGetLastError();
}

}  // namespace weightcast::gpu
