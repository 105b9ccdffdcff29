// Versions by delta are what they would be if all bytes had been sent, whatever the shapes, ranks and changes, and
// whatever went wrong before.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "harness/delta_rig.hpp"
#include "weightcast/update/slot_delta.hpp"

namespace weightcast {
namespace {

using testing_harness::Bytes;
using testing_harness::change;
using testing_harness::DeltaRig;
using testing_harness::Hooks;

std::size_t chains() {
  const char* const given = std::getenv("WEIGHTCAST_DELTA_CHAINS");
  return given == nullptr ? 12 : std::stoul(given);
}

struct Case {
  std::string transport;
  MemoryKind memory = MemoryKind::host;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.transport << " " << name(c.memory);
}

class DeltaUpdate : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto& [transport, memory] = GetParam();
    if (const auto reason = testing_harness::why_not(memory, transport); !reason.empty()) GTEST_SKIP() << reason;
    testing_harness::stand_apart(transport == "nccl");
  }
  template <typename T>
  T one_of(std::initializer_list<T> choices) {
    return *(choices.begin() + random() % choices.size());
  }

  /// Of all ranks, cut in some way; a model that can be cut so, with odd sizes where that goes.
  DeltaRig::Settings random_settings(std::uint64_t ranks) {
    DeltaRig::Settings settings;
    settings.transport = GetParam().transport;
    settings.memory = GetParam().memory;
    settings.trainers = random() % 2 == 0 ? 1 : 1 + random() % std::min<std::uint64_t>(ranks - 1, 4);
    const auto engines = ranks - settings.trainers;
    do settings.tp = one_of({1u, 2u, 4u, 8u});
    while (engines % settings.tp != 0);
    settings.dp = engines / settings.tp;
    settings.layout = settings.trainers == 1 ? LayoutKind::whole : one_of({LayoutKind::fsdp, LayoutKind::custom});
    settings.commit = one_of({CommitMode::swap, CommitMode::swap, CommitMode::in_place});
    settings.proof = random() % 8 == 0 ? Proof::none : Proof::digests;
    settings.delta_limit = one_of({0.1, 0.4, 1.0});
    settings.regions = 1 + random() % 2;
    for (;;) {
      ModelConfig config;
      config.family = one_of({Family::llama, Family::qwen2, Family::qwen3});
      config.layers = 1 + random() % 2;
      config.hidden = 1 + random() % 80;
      config.kv_heads = one_of({1u, 2u, 4u});
      config.heads = settings.tp * config.kv_heads * (1 + random() % 2);
      config.head_dim = 1 + random() % 24;
      config.intermediate = settings.tp * (1 + random() % 40);
      config.vocabulary = 100 + random() % 400;
      config.attention_bias = config.family == Family::qwen2;
      config.dtype = one_of({DType::BF16, DType::BF16, DType::F32});
      settings.model = build_model(config);
      try {
        make_plan(settings.model, settings.tp, settings.dp);
        return settings;
      } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the next one may be cut so
      }
    }
  }

  std::mt19937_64 random{11};
};

TEST_P(DeltaUpdate, ChainsAreBitExactWithAbortsAtAnyStage) {
  constexpr int steps = 20;
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const auto ranks = static_cast<std::uint64_t>(world.size());
  std::uint64_t deltas = 0, aborts = 0, updates = 0;
  for (std::size_t chain = 0; chain < chains(); ++chain) {
    const auto settings = random_settings(ranks);
    SCOPED_TRACE(testing::Message() << "chain " << chain << ": " << settings.trainers << " trainers ("
                                    << name(settings.layout) << "), tp " << settings.tp << ", dp " << settings.dp
                                    << ", " << name(settings.commit) << ", limit " << settings.delta_limit << ", proof "
                                    << int(settings.proof) << ", regions " << settings.regions);
    Hooks hooks;
    DeltaRig rig(world, settings, hooks);
    auto filled = rig.served;
    std::uint64_t held = 0;
    for (std::uint64_t version = 1; version <= steps; ++version) {
      SCOPED_TRACE(testing::Message() << "version " << version);
      auto next = random() % 2 == 0 ? rig.served : filled;
      change(next, one_of({0.0, 0.0005, 0.01, 0.03, 0.1, 0.5, 1.0}), one_of({1u, 1u, 7u, 300u}), random);
      const auto region = random() % settings.regions;
      rig.fill(region, next);
      filled = next;
      const int guilty = static_cast<int>(random() % ranks);
      const auto fault = version == 1 ? 9 : random() % 8;
      const auto bit = random();
      /// One bit of what a delta arrives in, where it is in that part (nullptr: anywhere).
      const auto flip_in = [&](const Peers& peers, const Region& sink, const Segment* landed) {
        if (fault != 1 || peers.rank() != guilty || peers.trainer()) return;
        if (sink.data == rig.store->slots()[0].data || sink.data == rig.store->slots().back().data) return;
        const auto of_sink = bit % (sink.size_bytes * 8);
        if (landed == nullptr || of_sink / 8 - landed->destination_offset < landed->size_bytes())
          testing_harness::flip(sink, of_sink);
      };
      hooks.after = [&](const Peers& peers, const Endpoints& endpoints, const Batch& batch) {
        if (fault == 0 && peers.rank() == guilty) throw Error(ExitCode::unavailable, "injected: it broke");
        // What is applied as it arrives, is damaged before.
        if (batch.gpu_observer == nullptr) flip_in(peers, endpoints.sinks[batch.sink_index], nullptr);
      };
      hooks.landed = [&](const Peers& peers, const Endpoints& endpoints, const Batch& batch, const Segment& segment) {
        flip_in(peers, endpoints.sinks[batch.sink_index], &segment);
      };
      UpdateResult result;
      const auto error = rig.publish(region, version, result);
      ++updates;
      if (error) {
        ++aborts;
        ASSERT_TRUE(fault <= 1) << error->what();
        const bool dirty = rig.store && rig.store->dirty();
        if (!dirty && held != 0) {
          ASSERT_TRUE(rig.holds(rig.served, held));
        }
        continue;
      }
      if (fault == 1 && settings.proof == Proof::none) break;  // who asks for no proof has none
      ASSERT_NE(fault, 0U);
      rig.served = next;
      held = version;
      if (result.payload == Payload::delta) ++deltas;
      ASSERT_TRUE(rig.holds(next, version))
          << (result.payload == Payload::delta ? "by delta" : "dense") << " shipped " << result.changed_elements;
    }
  }
  EXPECT_GT(5 * deltas, updates);
  EXPECT_GT(20 * aborts, updates);
  if (world.rank() == 0)
    std::printf("%llu updates, %llu by delta, %llu aborted\n", static_cast<unsigned long long>(updates),
                static_cast<unsigned long long>(deltas), static_cast<unsigned long long>(aborts));
}

TEST_P(DeltaUpdate, WhatAScrubFindsNoDeltaStandsOn) {
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  for (const auto commit : {CommitMode::swap, CommitMode::in_place}) {
    DeltaRig::Settings settings{.transport = GetParam().transport, .memory = GetParam().memory, .scrub = true};
    settings.dp = static_cast<std::uint64_t>(world.size()) - 1;
    settings.commit = commit;
    const Hooks hooks;
    DeltaRig rig(world, settings, hooks);
    auto weights = rig.served;
    const auto update_to = [&](std::uint64_t version, Payload payload) {
      change(weights, 0.01, 1, random);
      rig.fill(0, weights);
      UpdateResult result;
      const auto error = rig.publish(0, version, result);
      ASSERT_FALSE(error) << error->what();
      ASSERT_EQ(result.payload, payload) << "version " << version;
      ASSERT_TRUE(rig.holds(weights, version));
    };
    const auto scrub = [&] { return !rig.store || rig.group().scrub(rig.store->pin(), Deadline::after(20)); };
    update_to(1, Payload::dense);
    for (std::uint64_t version = 2; version <= 4; ++version) {
      update_to(version, Payload::delta);
      EXPECT_TRUE(scrub());
    }
    if (world.rank() == world.size() - 1) {
      testing_harness::flip(rig.store->pin().slot(), 8 * rig.plan.ranks[0].shards[1].destination_offset);
      EXPECT_THROW(scrub(), Error);
    } else {
      EXPECT_TRUE(scrub());
    }
    world.barrier(Deadline::after(20));
    update_to(5, Payload::dense);
    EXPECT_TRUE(scrub());
    update_to(6, Payload::delta);
    EXPECT_TRUE(scrub());
  }
}

std::vector<Case> host_cases() {
  return {{"mpi"}, {"direct"}};
}
std::vector<Case> gpu_cases() {
  return {{"direct", MemoryKind::cuda}, {"nccl", MemoryKind::cuda}};
}
INSTANTIATE_TEST_SUITE_P(Host, DeltaUpdate, testing::ValuesIn(host_cases()));
INSTANTIATE_TEST_SUITE_P(Gpu, DeltaUpdate, testing::ValuesIn(gpu_cases()));

}  // namespace
}  // namespace weightcast
