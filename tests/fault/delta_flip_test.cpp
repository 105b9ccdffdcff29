// One bit flipped in a delta's table or entries as they arrive, in the delta that was kept, or in what it is applied
// to: refused every time, the old version served, and the next update succeeds.
#include <gtest/gtest.h>

#include <cstdlib>

#include "harness/delta_rig.hpp"
#include "weightcast/delta/delta_plan.hpp"

namespace weightcast {
namespace {

using testing_harness::Bytes;
using testing_harness::change;
using testing_harness::DeltaRig;
using testing_harness::Hooks;

int flips() {
  const char* const given = std::getenv("WEIGHTCAST_DELTA_FLIPS");
  return given == nullptr ? 150 : std::stoi(given);
}

enum class Where : std::uint8_t { starts, entries, kept, base };

struct Case {
  std::string transport;
  MemoryKind memory = MemoryKind::host;
  CommitMode commit = CommitMode::swap;
  Where where = Where::starts;
  double share = 0.01;  // of the units, changes
};
void PrintTo(const Case& c, std::ostream* out) {
  constexpr std::array names = {"starts", "entries", "kept", "base"};
  *out << c.transport << " " << name(c.memory) << " " << name(c.commit) << " "
       << names.at(static_cast<std::size_t>(c.where)) << " " << c.share;
}

class DeltaFlip : public testing::TestWithParam<Case> {};

TEST_P(DeltaFlip, IsRefused) {
  const auto& param = GetParam();
  if (const auto reason = testing_harness::why_not(param.memory, param.transport); !reason.empty())
    GTEST_SKIP() << reason;
  testing_harness::stand_apart(param.transport == "nccl");
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const auto tp = static_cast<std::uint64_t>(world.size()) - 1;
  DeltaRig::Settings settings;
  settings.transport = param.transport;
  settings.memory = param.memory;
  settings.commit = param.commit;
  settings.tp = tp;
  Hooks hooks;
  std::mt19937_64 random(5);
  DeltaRig rig(world, settings, hooks);
  const auto deltas = make_delta_plan(rig.plan, settings.delta_limit);
  int guilty = -1;
  std::uint64_t number = 0;  // random, of this flip
  std::size_t inbox = 0;     // where the delta under way is
  std::vector<Region> inboxes;
  std::uint64_t kept_entries = 0, entries = 0;
  // On a GPU many changes go into a copy of what is served, few into the spare slot.
  const bool copies = param.memory == MemoryKind::cuda && param.commit == CommitMode::swap && param.share > 0.02;
  std::optional<std::uint64_t> flipped;  // bit of the served slot, to be put right again

  const auto stream_of = [&] { return std::ranges::find(deltas.streams, rig.tp_rank(), &DeltaStream::tp_rank); };
  /// The bit to flip, in the inbox.
  const auto bit_of = [&](bool starts, std::uint64_t count) {
    const auto stream = stream_of();
    const auto first = stream->inbox_offset + (starts ? 0 : stream->starts_bytes());
    const auto size = starts ? stream->starts_bytes() : count * sizeof(DeltaEntry);
    return 8 * first + number % (8 * size);
  };
  const auto count_in = [&](const Region& memory) {
    const auto stream = stream_of();
    std::uint64_t count = 0;
    read_region(memory, stream->inbox_offset + stream->starts_bytes() - sizeof(count),
                std::as_writable_bytes(std::span(&count, 1)));
    return count;
  };
  /// A unit of this rank that the delta changes, by an entry of its first part, before it does; the bit.
  const auto flip_changed = [&](const Region& memory, const Region& slot) {
    const auto stream = stream_of();
    const HostView view(memory);
    const auto* const data = view.bytes().data() + stream->inbox_offset;
    std::vector<std::uint64_t> starts(stream->block_count + 1);
    std::memcpy(starts.data(), data, stream->starts_bytes());
    const auto in_first_part = (stream->part_ends[0] - stream->starts_bytes()) / sizeof(DeltaEntry);
    const auto entry_index = number % std::min(starts.back(), in_first_part);
    const auto block = static_cast<std::uint64_t>(std::ranges::upper_bound(starts, entry_index) - starts.begin()) - 1;
    DeltaEntry entry;
    std::memcpy(&entry, data + stream->starts_bytes() + entry_index * sizeof(entry), sizeof(entry));
    const auto& run = run_of(stream->runs.data(), stream->runs.size(), block);
    const auto place = run.slot + block_of(run, block).place(entry.index, run.slot_pitch);
    const auto bit = 8 * place + number / 7 % 16;
    testing_harness::flip(slot, bit);
    return bit;
  };
  Bytes next;  // what is published
  /// Any bit of what is copied and does not change; of what does, the damage goes.
  const auto flip_served = [&] {
    const auto& shards = rig.plan.ranks[rig.tp_rank()].shards;
    const auto before = harness::slot_of(rig.plan, rig.tp_rank(), rig.served),
               after = harness::slot_of(rig.plan, rig.tp_rank(), next);
    for (auto pick = number;; ++pick) {
      const auto& shard = shards[pick % shards.size()];
      const auto bit = 8 * shard.destination_offset + pick / 7 % (8 * shard.row_bytes);
      const auto unit = bit / 16 * 2;
      if (before[unit] != after[unit] || before[unit + 1] != after[unit + 1]) continue;
      flipped = bit;
      return testing_harness::flip(rig.store->slots()[*rig.store->slot_of(*rig.store->served())], bit);
    }
  };
  const auto is_slot = [&](const Region& sink) {
    return sink.data == rig.store->slots()[0].data || sink.data == rig.store->slots().back().data;
  };
  // What is applied as it arrives is damaged before; else when all has arrived.
  hooks.landed = [&](const Peers& peers, const Endpoints& endpoints, const Batch& batch, const Segment& landed) {
    const auto& sink = endpoints.sinks[batch.sink_index];
    if (is_slot(sink) || peers.rank() != guilty || landed.from != stream_of()->from) return;
    const bool first = landed.parameter_index == 0;
    const auto bit = bit_of(param.where == Where::starts, count_in(sink));
    switch (param.where) {
      case Where::starts:
      case Where::entries:
        if (bit / 8 - landed.destination_offset < landed.size_bytes()) testing_harness::flip(sink, bit);
        return;
      case Where::kept: return;
      case Where::base:
        if (first && copies) flip_served();
        if (first && !copies) flip_changed(sink, rig.store->slots()[1 - *rig.store->slot_of(*rig.store->served())]);
    }
  };
  hooks.after = [&](const Peers& peers, const Endpoints& endpoints, const Batch& batch) {
    if (peers.trainer()) return;
    const auto& sink = endpoints.sinks[batch.sink_index];
    if (is_slot(sink)) return;
    inbox = batch.sink_index;
    inboxes = endpoints.sinks;
    entries = count_in(sink);
    if (peers.rank() != guilty || batch.gpu_observer != nullptr) return;
    switch (param.where) {
      case Where::starts:
      case Where::entries: return testing_harness::flip(sink, bit_of(param.where == Where::starts, entries));
      case Where::kept: return;
      case Where::base: {
        const auto slot = *rig.store->slot_of(*rig.store->served());
        flip_changed(sink, rig.store->slots()[rig.store->slots().size() == 1 ? slot : 1 - slot]);
      }
    }
  };
  std::uint64_t version = 0, served_id = 0;
  const auto update = [&] {
    next = rig.served;
    change(next, param.share, 1 + random() % 3, random);
    rig.fill(0, next);
    UpdateResult result;
    const auto error = rig.publish(0, ++version, result);
    if (!error) {
      rig.served = next;
      served_id = version;
      kept_entries = result.payload == Payload::delta ? entries : 0;
    }
    return std::pair(error, result.payload);
  };
  ASSERT_FALSE(update().first);
  for (int i = 0; i < flips(); ++i) {
    SCOPED_TRACE(testing::Message() << "flip " << i);
    const auto [failed, kind] = update();  // so that one is kept
    ASSERT_FALSE(failed) << failed->what();
    ASSERT_EQ(kind, Payload::delta);
    guilty = 1 + static_cast<int>(random() % tp);
    number = random();
    const bool table = random() % 2 == 0;
    if (param.where == Where::kept && world.rank() == guilty)
      testing_harness::flip(inboxes[inbox], bit_of(table, kept_entries));
    const auto [error, payload] = update();
    guilty = -1;
    if (flipped) testing_harness::flip(rig.store->pin().slot(), *std::exchange(flipped, std::nullopt));
    ASSERT_TRUE(error) << "went unnoticed";
    ASSERT_EQ(error->code(), ExitCode::mismatch) << error->what();
    if (param.where == Where::base && param.commit == CommitMode::in_place && rig.store) {
      ASSERT_EQ(rig.store->served(), served_id);
    } else if (i % 50 == 0) {
      ASSERT_TRUE(rig.holds(rig.served, served_id));
    }
    const auto [after, whole] = update();
    ASSERT_FALSE(after) << after->what();
    ASSERT_EQ(whole, Payload::dense);
    ASSERT_TRUE(i % 50 != 0 || rig.holds(rig.served, version));
  }
}

std::vector<Case> cases(const std::string& transport, MemoryKind memory) {
  std::vector<Case> all;
  for (const auto commit : {CommitMode::swap, CommitMode::in_place}) {
    for (const auto where : {Where::starts, Where::entries, Where::kept, Where::base}) {
      if (where != Where::kept || commit == CommitMode::swap) all.push_back({transport, memory, commit, where});
      if (memory == MemoryKind::cuda && where != Where::kept && commit == CommitMode::swap)
        all.push_back({transport, memory, commit, where, 0.06});
    }
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(Host, DeltaFlip, testing::ValuesIn(cases("direct", MemoryKind::host)));
INSTANTIATE_TEST_SUITE_P(Gpu, DeltaFlip, testing::ValuesIn(cases("direct", MemoryKind::cuda)));

}  // namespace
}  // namespace weightcast
