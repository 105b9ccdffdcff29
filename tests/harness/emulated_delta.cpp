// Deltas on GPUs that are not there (harness/emulated_gpu.cpp): unit by unit, each one looked up. Stricter than the
// kernels: runs must follow each other without gaps, everything must be even, and a stream that is applied must be
// good.
#include <cstring>

#include "harness/emulated_gpu.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast::gpu {

using emulated::at;
using emulated::stop;

namespace {

template <typename Value>
Value load(const Value* address) {
  Value value;
  std::memcpy(&value, at(reinterpret_cast<const std::byte*>(address), sizeof(value)), sizeof(value));
  return value;
}
template <typename Value>
void store(Value* address, const Value& value) {
  std::memcpy(at(reinterpret_cast<const std::byte*>(address), sizeof(value)), &value, sizeof(value));
}

void expect_even(std::uint64_t number) {
  if (number % delta_unit_bytes != 0) stop("a unit that is not aligned");
}
void expect_even(const std::byte* address) {
  expect_even(reinterpret_cast<std::uintptr_t>(address));
}

/// Calls `visit(number, run, block)` for each block.
template <typename Visit>
void visit_blocks(const DeltaRuns& runs, const Visit& visit) {
  std::uint64_t number = 0;
  for (std::uint64_t r = 0; r < runs.run_count; ++r) {
    const auto run = load(runs.runs + r);
    if (run.first_block != number) stop("runs whose blocks do not follow each other");
    expect_even(run.source | run.source_pitch | run.slot | run.slot_pitch | run.offset | run.parameter_pitch);
    for (const auto end = number + run.block_count(); number < end; ++number)
      visit(number, run, weightcast::block_of(run, number));
  }
  if (number != runs.block_count) stop("runs that have another number of blocks than is said");
}

}  // namespace

void emulated::mark_units(std::span<const std::byte> before, std::span<const std::byte> after, std::uint64_t first,
                          std::uint32_t* marks) {
  expect_even(before.size());
  for (std::uint64_t i = 0; i < before.size() / delta_unit_bytes; ++i) {
    if (std::memcmp(&before[delta_unit_bytes * i], &after[delta_unit_bytes * i], delta_unit_bytes) == 0) continue;
    auto* const word = marks + (first + i) / 32;
    store(word, load(word) | 1u << (first + i) % 32);
  }
}

void mark(const std::byte* before, const std::byte* after, std::uint64_t size_bytes, std::uint32_t* marks,
          const Stream& stream) {
  if (size_bytes == 0) return;
  expect_even(before);
  expect_even(after);
  emulated::queue(stream, [=] {
    emulated::mark_units({at(before, size_bytes), size_bytes}, {at(after, size_bytes), size_bytes}, 0, marks);
  });
}

std::uint64_t encode_scratch_bytes(std::uint64_t block_count) {
  return 8 * (block_count + 1);
}

void encode(const DeltaRuns& runs, const std::uint32_t* marks, const std::byte* source, std::uint64_t* starts,
            DeltaEntry* entries, std::uint64_t capacity, std::byte* scratch, const Stream& stream) {
  expect_even(source);
  if (reinterpret_cast<std::uintptr_t>(scratch) % 8 != 0) stop("scratch memory that is not aligned");
  emulated::queue(stream, [=] {
    // Nobody may count on what is in there afterwards.
    const auto scratch_bytes = encode_scratch_bytes(runs.block_count);
    std::memset(at(scratch, scratch_bytes), 0x5a, scratch_bytes);
    std::uint64_t count = 0;
    visit_blocks(runs, [&](std::uint64_t number, const DeltaRun& run, const DeltaBlock& block) {
      store(starts + number, count);
      for (std::uint64_t i = 0; i < block.units(); ++i) {
        const auto offset = run.source + block.place(i, run.source_pitch), unit = offset / delta_unit_bytes;
        if ((load(marks + unit / 32) >> unit % 32 & 1) == 0) continue;
        if (count < capacity) {
          store(entries + count,
                {static_cast<std::uint16_t>(i), load(reinterpret_cast<const std::uint16_t*>(source + offset))});
        }
        ++count;
      }
    });
    store(starts + runs.block_count, count);
  });
}

void check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries, std::uint64_t capacity,
                 std::uint32_t* bad, const Stream& stream) {
  emulated::queue(stream, [=] {
    if (load(bad) != 0) stop("a check whose outcome is there before");
    bool good = load(starts) == 0;
    visit_blocks(runs, [&](std::uint64_t number, const DeltaRun&, const DeltaBlock& block) {
      const auto first = load(starts + number), end = load(starts + number + 1);
      good = good && first <= end && end <= capacity && end - first <= block.units();
      std::uint64_t least = 0;
      for (auto i = first; good && i < end; ++i) {
        const std::uint64_t index = load(entries + i).index;
        good = index >= least && index < block.units();
        least = index + 1;
      }
    });
    if (!good) store(bad, 1u);
  });
}

void apply_delta(const DeltaRuns& runs, const std::uint64_t* starts, DeltaEntry* entries, bool swap, std::byte* slot,
                 std::uint64_t* sums, const std::uint32_t* bad, const Stream& stream) {
  expect_even(slot);
  emulated::queue(stream, [=] {
    if (load(bad) != 0) return;
    visit_blocks(runs, [&](std::uint64_t number, const DeltaRun& run, const DeltaBlock& block) {
      for (auto i = load(starts + number), end = load(starts + number + 1); i < end; ++i) {
        const auto entry = load(entries + i);
        if (entry.index >= block.units()) stop("a stream that is not good is applied");
        auto* const unit = reinterpret_cast<std::uint16_t*>(slot + run.slot + block.place(entry.index, run.slot_pitch));
        const auto before = load(unit);
        store(unit, entry.value);
        if (swap) store(entries + i, {entry.index, before});
        if (sums == nullptr) continue;
        const auto offset = run.offset + block.place(entry.index, run.parameter_pitch);
        const auto less = digest_bytes(std::as_bytes(std::span(&before, 1)), offset),
                   more = digest_bytes(std::as_bytes(std::span(&entry.value, 1)), offset);
        auto* const sum = sums + 2 * run.parameter_index;
        store(sum, load(sum) + more.first - less.first);
        store(sum + 1, load(sum + 1) + more.second - less.second);
      }
    });
  });
}

void copy(std::byte* destination, const std::byte* source, std::uint64_t size_bytes, const Stream& stream) {
  if (size_bytes == 0) return;
  emulated::queue(stream, [=] { std::memcpy(at(destination, size_bytes), at(source, size_bytes), size_bytes); });
}

}  // namespace weightcast::gpu
