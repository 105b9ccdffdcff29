// Deltas on GPUs: marks, streams and slots are those that the format's words (delta/delta.md) give for random runs.
#include <gtest/gtest.h>

#include "gpu/delta_on_gpu.hpp"

namespace weightcast {
namespace {

using delta_cases::Case;
using delta_cases::Encoded;
using delta_cases::GpuDelta;
using delta_cases::Marks;
using delta_cases::number;
using delta_cases::Random;
using delta_cases::same;
using delta_cases::sum;
using harness::Held;
using harness::random_values;

/// The whole road of a case: marked, encoded, checked, applied, undone, applied again.
void expect_road(Random& random, delta_cases::Stream made, const gpu::Stream& stream) {
  const auto finish = [&] { stream.synchronize(Deadline::after(60), "a test"); };
  Case c(random, std::move(made));
  // Some are there before: a unit that changed and changed back.
  for (auto& word : c.marks) word = random() % 8 == 0 ? 1u << random() % 32 : 0;
  const Held before(c.before), after(c.after);
  const Held marks(c.marks);
  delta_cases::mark(c.before, c.after, c.marks);
  gpu::mark(before.data(), after.data(), c.before.size(), marks.data(), stream);
  finish();
  ASSERT_EQ(marks.read(), c.marks);
  c.expect();

  const auto total = c.encoded.entries.size();
  const auto room = random() % 3 == 0 ? number(random, 0, total) : total + number(random, 0, 5);
  const Held starts(random_values<std::uint64_t>(random, c.stream.blocks.size() + 1));
  const std::vector<DeltaEntry> unwritten(std::max(room, total), DeltaEntry{0x1234, 0xabcd});
  const Held entries(unwritten);
  const Held scratch(random_values<std::byte>(random, gpu::encode_scratch_bytes(c.stream.blocks.size())));
  gpu::encode(c.on_gpu, marks.data(), after.data(), starts.data(), entries.data(), room, scratch.data(), stream);
  finish();
  ASSERT_EQ(starts.read(), c.encoded.starts);
  auto expected = c.encoded.entries;
  expected.resize(std::min(expected.size(), room));
  expected.insert(expected.end(), unwritten.begin() + static_cast<std::ptrdiff_t>(expected.size()), unwritten.end());
  ASSERT_TRUE(same(entries.read(), expected)) << "room for " << room << " of " << total;
  const Held bad(std::vector<std::uint32_t>{0});
  gpu::check_delta(c.on_gpu, starts.data(), entries.data(), room, bad.data(), stream);
  finish();
  ASSERT_EQ(bad.read()[0], room < total ? 1u : 0u);

  const Held slot(c.old_slot);
  const auto some = random_values<std::uint64_t>(random, c.change.size());
  const Held sums(some);
  const auto apply = [&](bool swap, bool digests) {
    gpu::apply_delta(c.on_gpu, starts.data(), entries.data(), swap, slot.data(), digests ? sums.data() : nullptr,
                     bad.data(), stream);
    finish();
  };
  bad.write(std::vector<std::uint32_t>{1});
  apply(true, true);
  ASSERT_TRUE(slot.read() == c.old_slot && sums.read() == some && same(entries.read(), expected))
      << "a bad one is applied";
  bad.write(std::vector<std::uint32_t>{0});
  entries.write(c.encoded.entries);
  const auto given = entries.read();
  apply(true, true);
  ASSERT_EQ(slot.read(), c.new_slot);
  ASSERT_EQ(sums.read(), sum(some, c.change));
  ASSERT_TRUE(total == 0 || c.old_slot == c.new_slot || !same(entries.read(), given)) << "nothing was exchanged";
  apply(true, true);
  ASSERT_EQ(slot.read(), c.old_slot) << "applied twice";
  ASSERT_EQ(sums.read(), some);
  ASSERT_TRUE(same(entries.read(), given));
  apply(true, false);
  apply(true, false);
  ASSERT_TRUE(slot.read() == c.old_slot && same(entries.read(), given));
  apply(false, true);
  ASSERT_EQ(slot.read(), c.new_slot);
  ASSERT_EQ(sums.read(), sum(some, c.change));
  slot.write(c.old_slot);
  apply(false, false);
  ASSERT_EQ(slot.read(), c.new_slot);
  ASSERT_EQ(sums.read(), sum(some, c.change));
  ASSERT_TRUE(same(entries.read(), given));
}

TEST_F(GpuDelta, WhatIsMarkedArrives) {
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    Random random(seed);
    ASSERT_NO_FATAL_FAILURE(expect_road(random, delta_cases::random_stream(random), stream_)) << "seed " << seed;
  }
}

TEST_F(GpuDelta, OfManyBlocksToo) {
  // More than one warp's worth for every lane, more than a scan's of tiles; then blocks that are full.
  Random random(7);
  delta_cases::Stream small, large;
  for (int run = 0; run < 300'000; ++run) small.add(random, number(random, 1, 4), 1, run % 2 == 0);
  ASSERT_NO_FATAL_FAILURE(expect_road(random, std::move(small), stream_));
  for (int run = 0; run < 20; ++run) large.add(random, number(random, 100'000, 200'000), 1, run % 2 == 0);
  ASSERT_NO_FATAL_FAILURE(expect_road(random, std::move(large), stream_));
}

TEST_F(GpuDelta, NothingIsAStreamToo) {
  const Held starts(std::vector<std::uint64_t>{7});
  const Held scratch(std::vector<std::byte>(gpu::encode_scratch_bytes(0)));
  const Held bad(std::vector<std::uint32_t>{0});
  gpu::check_delta({}, starts.data(), nullptr, 0, bad.data(), stream_);
  finish();
  EXPECT_EQ(bad.read()[0], 1u);
  bad.write(std::vector<std::uint32_t>{0});
  gpu::mark(nullptr, nullptr, 0, nullptr, stream_);
  gpu::encode({}, nullptr, nullptr, starts.data(), nullptr, 0, scratch.data(), stream_);
  gpu::check_delta({}, starts.data(), nullptr, 0, bad.data(), stream_);
  gpu::apply_delta({}, starts.data(), nullptr, true, nullptr, nullptr, bad.data(), stream_);
  gpu::check_starts({}, starts.data(), 0, bad.data(), stream_);
  gpu::apply_piece({}, nullptr, nullptr, bad.data(), stream_);
  gpu::patch_and_digest({}, nullptr, nullptr, nullptr, bad.data(), stream_);
  finish();
  EXPECT_EQ(starts.read()[0], 0u);
  EXPECT_EQ(bad.read()[0], 0u);
}

TEST_F(GpuDelta, TheVectorsOfTheFormat) {
  const auto streams = [&](const DeltaRun& run, std::vector<std::uint16_t> before, std::vector<std::uint16_t> after) {
    const Held runs(std::vector{run});
    const Held olds(before), news(after);
    const Held marks(Marks(before.size() / 32 + 1));
    const Held starts(std::vector<std::uint64_t>(run.block_count() + 1));
    const Held entries(std::vector<DeltaEntry>(4));
    const Held scratch(std::vector<std::byte>(gpu::encode_scratch_bytes(run.block_count())));
    const auto bytes = [](const auto& held) { return reinterpret_cast<const std::byte*>(held.data()); };
    gpu::mark(bytes(olds), bytes(news), 2 * before.size(), marks.data(), stream_);
    gpu::encode({runs.data(), 1, run.block_count()}, marks.data(), bytes(news), starts.data(), entries.data(), 4,
                scratch.data(), stream_);
    finish();
    Encoded encoded{starts.read(), entries.read()};
    encoded.entries.resize(encoded.starts.back());
    return encoded;
  };
  using Entries = std::vector<DeltaEntry>;
  // The fourth unit is between the rows.
  const DeltaRun rows{.source_pitch = 8, .slot_pitch = 6, .parameter_pitch = 6, .row_units = 3, .rows = 2};
  const auto none = streams(rows, {1, 2, 3, 0, 4, 5, 6}, {1, 2, 3, 9, 4, 5, 6});
  EXPECT_EQ(none.starts, (std::vector<std::uint64_t>{0, 0}));
  const auto two = streams(rows, {1, 2, 3, 0, 4, 5, 6}, {1, 0x8002, 3, 9, 4, 5, 7});
  EXPECT_EQ(two.starts, (std::vector<std::uint64_t>{0, 2}));
  EXPECT_TRUE(same(two.entries, Entries{{1, 0x8002}, {5, 7}}));
  const auto three = streams(rows, {0, 0x7fc0, 3, 0, 4, 5, 6}, {0x8000, 0x7fc1, 3, 0, 0, 5, 6});
  EXPECT_EQ(three.starts, (std::vector<std::uint64_t>{0, 3}));
  EXPECT_TRUE(same(three.entries, Entries{{0, 0x8000}, {1, 0x7fc1}, {3, 0}}));
  std::vector<std::uint16_t> before(4100), after(4100);
  after[4095] = 0x1234;
  after[4096] = 0x5678;
  const auto cut = streams({.row_units = 4100, .rows = 1}, before, after);
  EXPECT_EQ(cut.starts, (std::vector<std::uint64_t>{0, 1, 2}));
  EXPECT_TRUE(same(cut.entries, Entries{{4095, 0x1234}, {0, 0x5678}}));
}

TEST_F(GpuDelta, DamagedStreamsAreRefused) {
  std::size_t refused = 0;
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    Case c(random, delta_cases::random_stream(random));
    delta_cases::mark(c.before, c.after, c.marks);
    c.expect();
    auto encoded = c.encoded;
    const auto capacity = encoded.entries.size();
    const auto block = random() % c.stream.blocks.size();
    const auto some = capacity == 0 ? 0 : random() % capacity;
    auto& start = encoded.starts[random() % 2 == 0 ? block : block + 1];
    switch (random() % 8) {
      case 0: start += number(random, 1, 3); break;
      case 1: start -= number(random, 1, 3); break;
      case 2: start = random(); break;
      case 3: start = number(random, 0, 2 * capacity); break;
      case 4: encoded.starts.back() = capacity + number(random, 1, 5000); break;
      case 5:
        if (some > 0) std::swap(encoded.entries[some], encoded.entries[some - 1]);
        break;
      case 6:
        if (some > 0) encoded.entries[some].index = encoded.entries[some - 1].index;
        break;
      default:
        if (capacity > 0) encoded.entries[some].index = static_cast<std::uint16_t>(random());
        break;
    }
    // Room for one less, sometimes: then what does not fit makes it bad, however good it looks.
    const auto room = capacity - (capacity > 0 && random() % 4 == 0 ? 1 : 0);
    const bool good = delta_cases::is_good(c.stream, encoded, room);
    const Held starts(encoded.starts);
    const Held entries(encoded.entries);
    const Held bad(std::vector<std::uint32_t>{0});
    gpu::check_delta(c.on_gpu, starts.data(), entries.data(), room, bad.data(), stream_);
    finish();
    ASSERT_EQ(bad.read()[0], good ? 0u : 1u) << "seed " << seed;
    if (good) continue;
    ++refused;
    const Held slot(c.old_slot);
    const Held sums(c.change);
    gpu::apply_delta(c.on_gpu, starts.data(), entries.data(), true, slot.data(), sums.data(), bad.data(), stream_);
    finish();
    ASSERT_EQ(slot.read(), c.old_slot);
    ASSERT_EQ(sums.read(), c.change);
    ASSERT_TRUE(same(entries.read(), encoded.entries));
  }
  EXPECT_GT(refused, 200u);
}

}  // namespace
}  // namespace weightcast
