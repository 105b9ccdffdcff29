// Deltas on GPUs that are not there (harness/emulated_gpu.cpp): unit by unit, each one looked up. Stricter than the
// kernels: runs must follow each other without gaps, everything must be even, and a stream that is applied must be
// good.
#include <cstring>
#include <optional>

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

namespace {

/// Whether a block has at most as many entries as units, all of them before `capacity`.
bool good_starts(const std::uint64_t* starts, std::uint64_t number, std::uint64_t units, std::uint64_t capacity) {
  const auto first = load(starts + number), end = load(starts + number + 1);
  return first <= end && end <= capacity && end - first <= units;
}
/// Whether the indices of entries [first, end) ascend and are less than `units`.
bool good_entries(const DeltaEntry* entries, std::uint64_t first, std::uint64_t end, std::uint64_t units) {
  std::uint64_t least = 0;
  for (auto i = first; i < end; ++i) {
    const std::uint64_t index = load(entries + i).index;
    if (index < least || index >= units) return false;
    least = index + 1;
  }
  return true;
}

void queue_check(const DeltaRuns& runs, const std::uint64_t* starts, std::optional<const DeltaEntry*> entries,
                 std::uint64_t capacity, std::uint32_t* bad, const Stream& stream) {
  emulated::queue(stream, [=] {
    bool good = load(starts) == 0;
    visit_blocks(runs, [&](std::uint64_t number, const DeltaRun&, const DeltaBlock& block) {
      good = good && good_starts(starts, number, block.units(), capacity) &&
             (!entries || good_entries(*entries, load(starts + number), load(starts + number + 1), block.units()));
    });
    if (!good) store(bad, 1u);
  });
}

/// Calls `visit(number, run, block)` for each block of a piece.
template <typename Visit>
void visit_piece(const DeltaPiece& piece, const Visit& visit) {
  visit_blocks(piece.runs, [&](std::uint64_t number, const DeltaRun& run, const DeltaBlock& block) {
    const auto end = load(piece.starts + number + 1);
    const auto complete = [&](std::uint64_t entries) {
      return entries == every_entry || (entries != 0 && end <= entries);
    };
    if (complete(piece.last) && !complete(piece.first)) visit(number, run, block);
  });
}

/// Queues the entries of a piece, each into a slot where a block has been made ready by `make(run, block)`.
/// `wrote(run, offset in the parameter, before, after)`; `done(run, block)`.
template <typename Make, typename Wrote, typename Done>
void queue_piece(const DeltaPiece& piece, std::byte* slot, std::uint32_t* bad, const Stream& stream, const Make& make,
                 const Wrote& wrote, const Done& done) {
  expect_even(slot);
  if (piece.runs.block_count == 0) return;
  emulated::queue(stream, [=] {
    store(piece.found, ~std::uint64_t{0});  // nobody may count on what is in there
    store(piece.found + 1, ~std::uint64_t{0});
    if (load(bad) != 0) return;
    visit_piece(piece, [&](std::uint64_t number, const DeltaRun& run, const DeltaBlock& block) {
      make(run, block);
      const auto first = load(piece.starts + number), end = load(piece.starts + number + 1);
      if (!good_starts(piece.starts, number, block.units(), every_entry)) stop("a piece of a stream with bad starts");
      if (!good_entries(piece.entries, first, end, block.units())) store(bad, 1u);
      for (auto i = first; i < end; ++i) {
        const auto entry = load(piece.entries + i);
        if (entry.index >= block.units()) continue;
        auto* const unit = reinterpret_cast<std::uint16_t*>(slot + run.slot + block.place(entry.index, run.slot_pitch));
        const auto before = load(unit);
        store(unit, entry.value);
        wrote(run, run.offset + block.place(entry.index, run.parameter_pitch), before, entry.value);
      }
      done(run, block);
    });
  });
}

void add(std::uint64_t* sums, const DeltaRun& run, const Digest& digest) {
  auto* const sum = sums + 2 * run.parameter_index;
  store(sum, load(sum) + digest.first);
  store(sum + 1, load(sum + 1) + digest.second);
}
void add_change(std::uint64_t* sums, const DeltaRun& run, std::uint64_t offset, std::uint16_t before,
                std::uint16_t after) {
  const auto less = digest_bytes(std::as_bytes(std::span(&before, 1)), offset),
             more = digest_bytes(std::as_bytes(std::span(&after, 1)), offset);
  add(sums, run, {more.first - less.first, more.second - less.second});
}

}  // namespace

void check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries, std::uint64_t capacity,
                 std::uint32_t* bad, const Stream& stream) {
  queue_check(runs, starts, std::optional(entries), capacity, bad, stream);
}
void check_starts(const DeltaRuns& runs, const std::uint64_t* starts, std::uint64_t capacity, std::uint32_t* bad,
                  const Stream& stream) {
  queue_check(runs, starts, std::nullopt, capacity, bad, stream);
}

void apply_piece(const DeltaPiece& piece, std::byte* slot, std::uint64_t* sums, std::uint32_t* bad,
                 const Stream& stream) {
  queue_piece(
      piece, slot, bad, stream, [](const DeltaRun&, const DeltaBlock&) {},
      [=](const DeltaRun& run, std::uint64_t offset, std::uint16_t before, std::uint16_t after) {
        if (sums != nullptr) add_change(sums, run, offset, before, after);
      },
      [](const DeltaRun&, const DeltaBlock&) {});
}

void patch_and_digest(const DeltaPiece& piece, const std::byte* base, std::byte* slot, std::uint64_t* sums,
                      std::uint32_t* bad, const Stream& stream) {
  expect_even(base);
  queue_piece(
      piece, slot, bad, stream,
      [=](const DeltaRun& run, const DeltaBlock& block) {
        for (std::uint64_t i = 0; i < block.units(); ++i) {
          const auto place = run.slot + block.place(i, run.slot_pitch);
          store(reinterpret_cast<std::uint16_t*>(slot + place),
                load(reinterpret_cast<const std::uint16_t*>(base + place)));
        }
      },
      [](const DeltaRun&, std::uint64_t, std::uint16_t, std::uint16_t) {},
      [=](const DeltaRun& run, const DeltaBlock& block) {
        for (std::uint64_t row = 0; sums != nullptr && row < block.rows; ++row) {
          const auto place = run.slot + block.place(row * block.row_units, run.slot_pitch);
          const auto bytes = block.row_units * delta_unit_bytes;
          add(sums, run,
              digest_bytes({at(slot + place, bytes), bytes},
                           run.offset + block.place(row * block.row_units, run.parameter_pitch)));
        }
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
        if (sums != nullptr)
          add_change(sums, run, run.offset + block.place(entry.index, run.parameter_pitch), before, entry.value);
      }
    });
  });
}

void copy(std::byte* destination, const std::byte* source, std::uint64_t size_bytes, const Stream& stream) {
  if (size_bytes == 0) return;
  emulated::queue(stream, [=] { std::memcpy(at(destination, size_bytes), at(source, size_bytes), size_bytes); });
}

}  // namespace weightcast::gpu
