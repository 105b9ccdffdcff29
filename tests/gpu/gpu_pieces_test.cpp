// Deltas on GPUs, piece by piece: whatever they are cut into, the same comes of it, applied or over a copy; and what is
// damaged on the way, or in what they are applied to, shows.
#include <gtest/gtest.h>

#include "gpu/delta_on_gpu.hpp"

namespace weightcast {
namespace {

using delta_cases::Case;
using delta_cases::GpuDelta;
using delta_cases::number;
using delta_cases::Random;
using delta_cases::set_unit;
using delta_cases::sum;
using delta_cases::Sums;
using harness::Held;
using harness::random_bytes;
using harness::random_values;

/// The same stream in pieces that are cut anywhere: applied to the slot, and over a copy of another one.
void expect_pieces(Random& random, delta_cases::Stream made, const gpu::Stream& stream) {
  const auto finish = [&] { stream.synchronize(Deadline::after(60), "a test"); };
  Case c(random, std::move(made));
  delta_cases::mark(c.before, c.after, c.marks);
  c.expect();
  const Held starts(c.encoded.starts);
  const Held entries(c.encoded.entries);
  const Held bad(std::vector<std::uint32_t>{0});
  const Held found(random_values<std::uint64_t>(random, 2));
  const auto some = random_values<std::uint64_t>(random, c.change.size());
  const Held sums(some);
  const auto total = c.encoded.entries.size();
  gpu::check_starts(c.on_gpu, starts.data(), total, bad.data(), stream);
  std::vector<std::uint64_t> ends;
  for (auto cuts = number(random, 0, 8); cuts > 0; --cuts) ends.push_back(number(random, 0, total));
  ends.push_back(gpu::every_entry);
  std::ranges::sort(ends);
  const auto in_pieces = [&](const auto& make) {
    std::uint64_t first = 0;
    for (const auto end : ends) {
      make({c.on_gpu, starts.data(), entries.data(), first, end, number(random, 0, 2 * c.stream.blocks.size()),
            found.data()});
      first = end;
    }
    finish();
  };

  const Held base(c.old_slot);
  const Held slot(c.old_slot);
  in_pieces(
      [&](const gpu::DeltaPiece& piece) { gpu::apply_piece(piece, slot.data(), sums.data(), bad.data(), stream); });
  ASSERT_EQ(slot.read(), c.new_slot);
  ASSERT_EQ(sums.read(), sum(some, c.change));
  ASSERT_EQ(bad.read()[0], 0u);

  // Between runs and rows the slot keeps what it has.
  auto expected = random_bytes(c.old_slot.size(), random());
  slot.write(expected);
  Sums whole(c.change.size());
  for (const auto& block : c.stream.blocks) {
    for (const auto& unit : block) set_unit(expected, unit.slot, delta_cases::unit_at(c.new_slot, unit.slot));
  }
  for (const auto& run : c.stream.runs) {
    const auto digest = digest_rows(c.new_slot.data() + run.slot, run.slot_pitch, 2 * run.row_units, run.rows,
                                    run.offset, run.parameter_pitch);
    whole[2 * run.parameter_index] += digest.first;
    whole[2 * run.parameter_index + 1] += digest.second;
  }
  sums.write(some);
  in_pieces([&](const gpu::DeltaPiece& piece) {
    gpu::patch_and_digest(piece, base.data(), slot.data(), sums.data(), bad.data(), stream);
  });
  ASSERT_EQ(slot.read(), expected);
  ASSERT_EQ(sums.read(), sum(some, whole));
  ASSERT_EQ(bad.read()[0], 0u);
  ASSERT_EQ(base.read(), c.old_slot);

  // A unit of the base that does not change is damaged: the sums say so.
  const auto& block = c.stream.blocks[random() % c.stream.blocks.size()];
  const auto& unit = block[random() % block.size()];
  auto damaged = c.old_slot;
  set_unit(damaged, unit.slot, delta_cases::other_unit(random, delta_cases::unit_at(damaged, unit.slot)));
  base.write(damaged);
  sums.write(Sums(whole.size()));
  in_pieces([&](const gpu::DeltaPiece& piece) {
    gpu::patch_and_digest(piece, base.data(), slot.data(), sums.data(), bad.data(), stream);
  });
  const auto overwritten = slot.read() == expected;  // the delta has it
  ASSERT_EQ(sums.read() == whole, overwritten);

  base.write(c.old_slot);
  slot.write(c.old_slot);
  in_pieces([&](const gpu::DeltaPiece& piece) {
    gpu::patch_and_digest(piece, base.data(), slot.data(), nullptr, bad.data(), stream);
    gpu::apply_piece(piece, base.data(), nullptr, bad.data(), stream);
  });
  ASSERT_EQ(slot.read(), c.new_slot);
  ASSERT_EQ(base.read(), c.new_slot);
}

TEST_F(GpuDelta, PiecesAreTheWhole) {
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    ASSERT_NO_FATAL_FAILURE(expect_pieces(random, delta_cases::random_stream(random), stream_)) << "seed " << seed;
  }
}

TEST_F(GpuDelta, PiecesOfManyBlocksToo) {
  Random random(8);
  delta_cases::Stream small, large;
  for (int run = 0; run < 30'000; ++run) small.add(random, number(random, 1, 4), 1, run % 2 == 0);
  ASSERT_NO_FATAL_FAILURE(expect_pieces(random, std::move(small), stream_));
  // What models have: everything at multiples of 16 bytes.
  for (int run = 0; run < 12; ++run) large.add(random, 4096 * number(random, 10, 60), 1, false, 16);
  for (int run = 0; run < 12; ++run) large.add(random, 8 * number(random, 1, 700), number(random, 1, 300), false, 16);
  ASSERT_NO_FATAL_FAILURE(expect_pieces(random, std::move(large), stream_));
}

TEST_F(GpuDelta, DamagedPiecesAreRefused) {
  std::size_t refused = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    Case c(random, delta_cases::random_stream(random));
    delta_cases::mark(c.before, c.after, c.marks);
    c.expect();
    auto encoded = c.encoded;
    const auto capacity = encoded.entries.size();
    if (capacity < 2) continue;
    const auto some = number(random, 1, capacity - 1);
    switch (random() % 4) {
      case 0: std::swap(encoded.entries[some], encoded.entries[some - 1]); break;
      case 1: encoded.entries[some].index = encoded.entries[some - 1].index; break;
      case 2: encoded.entries[some].index = static_cast<std::uint16_t>(random()); break;
      default: encoded.starts[random() % encoded.starts.size()] += number(random, 0, 2) - 1; break;
    }
    const bool good = delta_cases::is_good(c.stream, encoded, capacity);
    const bool patches = random() % 2 == 0;
    const Held starts(encoded.starts);
    const Held entries(encoded.entries);
    const Held bad(std::vector<std::uint32_t>{0});
    const Held found(std::vector<std::uint64_t>(2));
    const Held base(c.old_slot);
    const Held slot(c.old_slot);
    const Held sums(c.change);
    gpu::check_starts(c.on_gpu, starts.data(), capacity, bad.data(), stream_);
    const auto cut = number(random, 0, capacity);
    for (const auto& [first, last] : {std::pair(std::uint64_t{0}, cut), std::pair(cut, gpu::every_entry)}) {
      const gpu::DeltaPiece piece{c.on_gpu, starts.data(),          entries.data(), first,
                                  last,     c.stream.blocks.size(), found.data()};
      if (patches) {
        gpu::patch_and_digest(piece, base.data(), slot.data(), sums.data(), bad.data(), stream_);
      } else {
        gpu::apply_piece(piece, slot.data(), sums.data(), bad.data(), stream_);
      }
    }
    finish();
    ASSERT_EQ(bad.read()[0], good ? 0u : 1u) << "seed " << seed;
    // Whatever was written was written where the stream belongs.
    auto held = slot.read();
    for (const auto& block : c.stream.blocks) {
      for (const auto& unit : block) set_unit(held, unit.slot, delta_cases::unit_at(c.old_slot, unit.slot));
    }
    ASSERT_EQ(held, c.old_slot);
    ASSERT_EQ(base.read(), c.old_slot);
    if (good) continue;
    ++refused;
    const auto before = slot.read();
    const auto summed = sums.read();
    const gpu::DeltaPiece all{c.on_gpu, starts.data(), entries.data(), 0, gpu::every_entry, 1, found.data()};
    gpu::apply_piece(all, slot.data(), sums.data(), bad.data(), stream_);
    gpu::patch_and_digest(all, base.data(), slot.data(), sums.data(), bad.data(), stream_);
    finish();
    ASSERT_TRUE(slot.read() == before && sums.read() == summed) << "a bad one is applied";
  }
  EXPECT_GT(refused, 100u);
}

}  // namespace
}  // namespace weightcast
