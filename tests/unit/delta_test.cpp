// Deltas in host memory: which bytes a stream has, what it makes of a slot, and how streams move.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "harness/model_bytes.hpp"
#include "harness/random_layout.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/delta/delta_plan.hpp"
#include "weightcast/delta/host_delta.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast {
namespace {

using harness::number;
using harness::random_bytes;

/// A stream of some runs, made of what differs between two sources.
struct Made {
  std::vector<DeltaRun> runs;
  std::vector<std::uint32_t> marks;
  std::vector<std::uint64_t> starts{0};
  std::vector<DeltaEntry> entries;

  Made(std::vector<DeltaRun> of, const std::vector<std::byte>& before, const std::vector<std::byte>& after)
      : runs(std::move(of)), marks(before.size() / 64 + 5) {
    mark_changes(before.data(), after.data(), 0, before.size() / 2, marks.data());
    for (const auto& run : runs) {
      for (std::uint64_t i = 0; i < run.block_count(); ++i) {
        const auto block = run.first_block + i;
        entries.resize(starts.back() + count_marked(run, block, marks.data()));
        encode_block(run, block, marks.data(), after.data(), entries.data() + starts.back());
        starts.push_back(entries.size());
      }
    }
  }
  std::uint64_t block_count() const { return starts.size() - 1; }
  StreamView view() { return {runs, block_count(), starts.data(), entries.data(), entries.size()}; }
  bool good() { return good_blocks(view(), 0, block_count()); }
};

std::vector<std::byte> units(std::initializer_list<std::uint16_t> values) {
  std::vector<std::byte> bytes(2 * values.size());
  std::memcpy(bytes.data(), values.begin(), bytes.size());
  return bytes;
}

void expect_entries(const Made& made, const std::vector<std::pair<unsigned, unsigned>>& expected) {
  ASSERT_EQ(made.entries.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(made.entries[i].index, expected[i].first);
    EXPECT_EQ(made.entries[i].value, expected[i].second);
  }
}

DeltaRun run_of_rows(std::uint64_t rows, std::uint64_t row_units, std::uint64_t pitch) {
  return {0, 0, pitch, 0, pitch, 0, pitch, row_units, rows, 0};
}

TEST(Delta, VectorsOfTheFormat) {
  const auto before = units({1, 2, 3, 0x77, 4, 5, 6, 0x77});
  const std::vector run{run_of_rows(2, 3, 8)};
  EXPECT_EQ(Made(run, before, before).starts, (std::vector<std::uint64_t>{0, 0}));
  const Made second(run, before, units({1, 0x8002, 3, 0x99, 4, 5, 7, 0x77}));
  EXPECT_EQ(second.starts, (std::vector<std::uint64_t>{0, 2}));
  expect_entries(second, {{1, 0x8002}, {5, 7}});
  expect_entries(Made(run, units({0, 0x7fc0, 3, 0, 4, 5, 6, 0}), units({0x8000, 0x7fc1, 3, 0, 0, 5, 6, 0})),
                 {{0, 0x8000}, {1, 0x7fc1}, {3, 0}});

  std::vector<std::byte> row(2 * 4100), changed = row;
  changed[2 * 4095] = std::byte{0x34};
  changed[2 * 4095 + 1] = std::byte{0x12};
  changed[2 * 4096] = std::byte{0x78};
  changed[2 * 4096 + 1] = std::byte{0x56};
  const Made two({run_of_rows(1, 4100, 8200)}, row, changed);
  EXPECT_EQ(two.starts, (std::vector<std::uint64_t>{0, 1, 2}));
  expect_entries(two, {{4095, 0x1234}, {0, 0x5678}});
  const std::array<unsigned char, 8> bytes{0xff, 0x0f, 0x34, 0x12, 0x00, 0x00, 0x78, 0x56};
  EXPECT_EQ(std::memcmp(two.entries.data(), bytes.data(), bytes.size()), 0);
}

RC_GTEST_PROP(Delta, MarksAreWhatDiffers, ()) {
  const auto count = number(0, 700), first = number(0, 100);
  const auto before = random_bytes(2 * count, number(0, 1000));
  auto after = before;
  const auto share = number(0, 10);
  for (std::uint64_t i = 0; i < count; ++i) {
    if (number(0, 9) < share) after[2 * i + number(0, 1)] ^= static_cast<std::byte>(number(1, 255));
  }
  std::vector<std::uint32_t> marks((first + count) / 32 + 1, 0);
  // Any cut of the range gives the same.
  const auto middle = number(0, count);
  mark_changes(before.data(), after.data(), first, middle, marks.data());
  mark_changes(before.data() + 2 * middle, after.data() + 2 * middle, first + middle, count - middle, marks.data());
  for (std::uint64_t u = 0; u < 32 * marks.size(); ++u) {
    const bool marked = (marks[u / 32] >> (u % 32) & 1) != 0;
    const bool differs =
        u >= first && u < first + count && std::memcmp(&before[2 * (u - first)], &after[2 * (u - first)], 2) != 0;
    RC_ASSERT(marked == differs);
  }
}

/// Random runs one behind the other, at other places in source and slot.
struct RandomRuns {
  std::vector<DeltaRun> runs;
  std::uint64_t source_bytes = 0, slot_bytes = 0;

  RandomRuns() {
    std::uint64_t blocks = 0, offset = 2 * number(0, 600);
    for (auto left = number(1, 4); left > 0; --left) {
      DeltaRun run;
      run.first_block = blocks;
      run.row_units = number(0, 4) == 0 ? number(4000, 9000) : number(1, 300);
      run.rows = number(0, 2) == 0 ? 1 : number(1, 40);
      const auto row = run.row_units * 2;
      run.source_pitch = row + 2 * number(0, 5);
      run.slot_pitch = row + 2 * number(0, 5);
      run.parameter_pitch = row + 2 * number(0, 5);
      run.source = source_bytes + 2 * number(0, 40);
      run.slot = slot_bytes + 2 * number(0, 40);
      run.offset = offset;
      run.parameter_index = runs.size();
      source_bytes = run.source + run.rows * run.source_pitch;
      slot_bytes = run.slot + run.rows * run.slot_pitch;
      blocks += run.block_count();
      runs.push_back(run);
    }
  }
};

Digest digest_of(const DeltaRun& run, const std::vector<std::byte>& slot) {
  return digest_rows(slot.data() + run.slot, run.slot_pitch, 2 * run.row_units, run.rows, run.offset,
                     run.parameter_pitch);
}

RC_GTEST_PROP(Delta, MakesOfTheOldSlotTheNewOne, ()) {
  const RandomRuns random;
  const auto seed = number(0, 1000), share = number(0, 10);
  auto before = random_bytes(random.source_bytes, seed), after = before;
  std::mt19937_64 chance(seed);  // a property's own draws are too slow for each byte
  for (auto& byte : after) {
    if (chance() % 40 < share) byte ^= std::byte{0x40};
  }
  std::vector<std::byte> old_slot = random_bytes(random.slot_bytes, seed + 1), new_slot = old_slot;
  for (const auto& run : random.runs) {
    for (std::uint64_t row = 0; row < run.rows; ++row) {
      const auto to = run.slot + row * run.slot_pitch, from = run.source + row * run.source_pitch;
      std::memcpy(&old_slot[to], &before[from], 2 * run.row_units);
      std::memcpy(&new_slot[to], &after[from], 2 * run.row_units);
    }
  }
  Made made(random.runs, before, after);
  RC_ASSERT(made.good());
  auto slot = old_slot;
  std::map<std::uint64_t, Digest> changes;
  const auto apply = [&](bool swap) {
    const auto middle = number(0, made.block_count());
    const auto add = [&](std::uint64_t parameter, const Digest& change) { changes[parameter] += change; };
    apply_blocks(made.view(), 0, middle, swap, slot.data(), add);
    apply_blocks(made.view(), middle, made.block_count(), swap, slot.data(), add);
  };
  apply(true);
  RC_ASSERT(slot == new_slot);
  for (const auto& run : random.runs)
    RC_ASSERT(digest_of(run, old_slot) + changes[run.parameter_index] == digest_of(run, new_slot));
  apply(true);  // undoes it
  RC_ASSERT(slot == old_slot);
  for (const auto& [parameter, change] : changes) RC_ASSERT(change == Digest{});
}

RC_GTEST_PROP(Delta, WhatDoesNotFitIsRefused, ()) {
  const RandomRuns random;
  const auto before = random_bytes(random.source_bytes, 1);
  auto after = before;
  std::mt19937_64 chance(number(0, 1000));
  for (auto& byte : after) {
    if (chance() % 5 == 0) byte ^= std::byte{1};
  }
  Made made(random.runs, before, after);
  RC_PRE(made.entries.size() > 1);
  const auto block = number(0, made.block_count() - 1);
  const auto count = made.starts[block + 1] - made.starts[block];
  switch (number(0, 5)) {
    case 0: made.starts[0] = 1; break;
    case 1: made.starts[block + 1] = number(made.entries.size() + 1, ~std::uint64_t{0} - 1); break;
    case 2:
      RC_PRE(made.starts[block] > 0);
      made.starts[block + 1] = number(0, made.starts[block] - 1);
      break;
    case 3:
      RC_PRE(count > 1);
      made.entries[made.starts[block] + 1].index = made.entries[made.starts[block]].index;
      break;
    case 4:
      RC_PRE(count > 1);
      std::swap(made.entries[made.starts[block]], made.entries[made.starts[block + 1] - 1]);
      break;
    default:
      RC_PRE(count > 0);
      made.entries[made.starts[block + 1] - 1].index = static_cast<std::uint16_t>(
          number(block_of(run_of(made.runs.data(), made.runs.size(), block), block).units(), 0xffff));
  }
  RC_ASSERT(!made.good());
}

RC_GTEST_PROP(Delta, StreamsHoldEveryUnitOfEveryShardOnceAndTheirMovementIsProven, ()) {
  const auto model = harness::random_model({2, 40, 3, 8});
  RC_TAG(std::string(name(model.config.family)), model.format.ep);
  const auto layout = harness::random_layout(model);
  const auto possible = possible_tp(model);
  const auto plan = make_plan(model, possible[number(0, possible.size() - 1)], number(1, 2), layout);
  const auto limit = static_cast<double>(number(1, 100)) / 100;
  const auto deltas = make_delta_plan(plan, limit);
  RC_ASSERT(deltas.possible());
  for (std::size_t t = 0; t < plan.tp; ++t) {
    std::set<std::uint64_t> places;
    std::uint64_t units = 0;
    for (const auto& stream : deltas.streams) {
      if (stream.tp_rank != t) continue;
      RC_ASSERT(std::ranges::is_sorted(stream.part_ends));
      RC_ASSERT(stream.part_ends.back() >= stream.size_bytes(stream.capacity));
      RC_ASSERT(stream.part_ends[stream.parts(stream.capacity) - 1] >= stream.size_bytes(stream.capacity));
      RC_ASSERT(stream.part_ends[stream.parts(0) - 1] >= stream.size_bytes(0));
      std::uint64_t next_block = 0;
      for (const auto& run : stream.runs) {
        RC_ASSERT(run.first_block == next_block);
        next_block += run.block_count();
        for (auto b = run.first_block; b < next_block; ++b) {
          const auto block = block_of(run, b);
          RC_ASSERT(block.units() > 0 && block.units() <= delta_block_units);
          RC_ASSERT(&run_of(stream.runs.data(), stream.runs.size(), b) == &run);
          for (std::uint64_t i = 0; i < block.units(); ++i) places.insert(run.slot + block.place(i, run.slot_pitch));
          units += block.units();
        }
      }
      RC_ASSERT(next_block == stream.block_count);
    }
    RC_ASSERT(places.size() == units);
    RC_ASSERT(2 * units == plan.ranks[t].received_bytes);
    const auto parts = deltas.movement.model.parameters.size();
    RC_ASSERT(prove_schedule(deltas.movement.ranks[t].schedule, parts, deltas.movement.pack_bytes) == "");
    if (plan.dp > 1) RC_ASSERT(prove_schedule(deltas.movement.ranks[t].relay, parts, deltas.movement.pack_bytes) == "");
  }
}

}  // namespace
}  // namespace weightcast
