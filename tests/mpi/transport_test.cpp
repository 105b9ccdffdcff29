// One conformance suite over every transport and method of this build.
#include <gtest/gtest.h>

#include "harness/replica_set.hpp"

namespace weightcast {
namespace {

using testing_harness::RandomWeights;
using testing_harness::slot_equals;

struct Case {
  std::string transport;
  Method method;
  std::uint64_t dp;
  Family family;
  MemoryKind memory = MemoryKind::host;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.transport << " " << name(c.method) << " dp " << c.dp << " " << name(c.family) << " " << name(c.memory);
}

/// Counts how often each byte of each shard was announced.
class CountingWitness final : public Witness {
 public:
  explicit CountingWitness(const RankPlan& rank) : rank_(rank) {
    for (const auto& shard : rank.shards) counts.emplace_back(shard.size_bytes());
  }
  void landed_on(const gpu::Stream&, std::size_t first, std::size_t count) noexcept override {
    for (std::size_t p = first; p < first + count; ++p) {
      for (auto& times : counts[p]) ++times;
    }
  }
  void landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept override {
    const auto& shard = rank_.shards[parameter];
    if (!shard.contiguous_source() && (first % shard.row_bytes != 0 || size_bytes % shard.row_bytes != 0))
      ++broken_rows;
    for (auto i = first; i < first + size_bytes; ++i) ++counts[parameter].at(i);
  }
  bool work() noexcept override {
    if (worked == 0 && at_first_work) at_first_work();
    return worked++ < 3;
  }

  std::function<void()> at_first_work;
  std::vector<std::vector<int>> counts;
  int worked = 0, broken_rows = 0;

 private:
  const RankPlan& rank_;
};

class TransportTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto& param = GetParam();
    const auto engines = static_cast<std::uint64_t>(testing_harness::world_size()) - 1;
    if (engines == 0 || engines % param.dp != 0) GTEST_SKIP() << "needs a multiple of " << param.dp << " engine ranks";
    if (const auto reason = testing_harness::why_not(param.memory, param.transport); !reason.empty())
      GTEST_SKIP() << reason;
    testing_harness::stand_apart(param.transport == "nccl");
    group = Communicator::duplicate(MPI_COMM_WORLD);
    plan = make_plan(testing_harness::small_model(param.family), engines / param.dp, param.dp);
    Placement placement;
    if (param.memory == MemoryKind::cuda) placement = {MemoryKind::cuda, testing_harness::world_rank() % gpu::count()};
    peers = Peers::meet(group, plan.tp, plan.dp, placement, deadline());
    for (std::uint64_t seed : {1, 2}) weights.push_back(std::make_unique<RandomWeights>(plan.model, seed));
    if (peers.trainer()) {
      for (const auto& source : weights) {
        auto& buffer = sources.emplace_back(
            std::make_unique<Buffer>(Buffer::allocate(placement, plan.source_bytes, true, "test source")));
        for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
          write_region(buffer->region(), plan.source_offsets[p], source->bytes(p));
        }
        endpoints.sources.push_back(buffer.get());
      }
    } else {
      store = std::make_unique<ParameterStore>(plan, CommitMode::swap, placement);
      endpoints.sinks = store->slots();
      if (plan.dp > 1) endpoints.shared_sinks = store->share();
    }
    transport = make_transport(param.transport, param.method, param.memory);
    ASSERT_EQ(transport->probe(peers), std::nullopt);
    transport->attach(peers, plan, endpoints, deadline());
    group.barrier(deadline());
  }

  static Deadline deadline() { return Deadline::after(20); }

  void run(Batch batch) {
    transport->run(batch, deadline());
    group.barrier(deadline());
  }

  Communicator group;
  TransferPlan plan;
  Peers peers;
  std::vector<std::unique_ptr<RandomWeights>> weights;
  std::vector<std::unique_ptr<Buffer>> sources;
  std::unique_ptr<ParameterStore> store;
  Endpoints endpoints;
  std::unique_ptr<Transport> transport;
};

/// The slot as the host can read it.
HostView held(const ParameterStore& store, std::size_t sink) {
  return HostView(store.slots()[sink]);
}

TEST_P(TransportTest, MovesTheWholeModelFromEitherSourceIntoEitherSlot) {
  for (std::size_t source : {0, 1, 0}) {
    for (std::size_t sink : {1, 0}) {
      run({source, sink, 0, plan.model.parameters.size(), nullptr});
      if (!store) continue;
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, sink).bytes(), *weights[source]));
      const auto slot = held(*store, sink);
      for (const auto& padding : plan.ranks[peers.tp_rank()].padding) {
        for (std::uint64_t i = 0; i < padding.size_bytes; ++i)
          ASSERT_EQ(slot.bytes()[padding.offset + i], std::byte{0});
      }
    }
  }
}

TEST_P(TransportTest, MovesAnyRangeAndTouchesNothingElse) {
  const auto all = plan.model.parameters.size();
  run({0, 0, 0, all, nullptr});
  for (std::size_t first = 0; first < all; first += 3) {
    const auto count = std::min<std::size_t>(first % 4 + 1, all - first);
    run({1, 0, first, count, nullptr});
    if (store) {
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[1], first, count));
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[0], 0, first));
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[0], first + count));
    }
    run({0, 0, first, count, nullptr});
  }
}

TEST_P(TransportTest, AnnouncesEveryByteOnceAndToEnginesOnly) {
  CountingWitness witness(plan.ranks[peers.trainer() ? 0 : peers.tp_rank()]);
  run({0, 0, 0, plan.model.parameters.size(), &witness});
  EXPECT_EQ(witness.broken_rows, 0);
  const int expected = peers.trainer() ? 0 : 1;
  for (std::size_t p = 0; p < witness.counts.size(); ++p) {
    for (const int count : witness.counts[p]) ASSERT_EQ(count, expected) << plan.model.parameters[p].info.name;
  }
  if (!peers.trainer()) {
    EXPECT_EQ(witness.worked, 0);
  }
}

TEST_P(TransportTest, ATrainerThatWaitsWorks) {
  if (GetParam().transport != "mpi") GTEST_SKIP() << "the trainer waits for nobody, or for its GPU";
  constexpr int tag = 1;
  CountingWitness witness(plan.ranks[peers.trainer() ? 0 : peers.tp_rank()]);
  bool called = false;
  const auto call_engines = [&] {
    for (int engine = 1; engine < group.size() && !called; ++engine)
      MPI_Send(nullptr, 0, MPI_BYTE, engine, tag, MPI_COMM_WORLD);
    called = true;
  };
  // The engines come when the trainer has begun to work: one that waits for them without would wait for ever.
  if (peers.trainer()) {
    witness.at_first_work = call_engines;
    transport->run({0, 0, 0, plan.model.parameters.size(), &witness}, deadline());
    call_engines();  // small shards are under way before anybody has to wait
  } else {
    MPI_Recv(nullptr, 0, MPI_BYTE, 0, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    transport->run({0, 0, 0, plan.model.parameters.size(), &witness}, deadline());
    EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[0]));
  }
  group.barrier(deadline());
}

TEST_P(TransportTest, ShardedSendsEachShardOnceForEachTpRank) {
  run({0, 0, 0, plan.model.parameters.size(), nullptr});
  if (!peers.trainer() || GetParam().method != Method::sharded) return;
  EXPECT_EQ(transport->traffic().egress_bytes, plan.egress_bytes());
}

TEST_P(TransportTest, ADeadlineEndsARunThatTheTrainerDoesNotJoin) {
  if (GetParam().transport == "direct") GTEST_SKIP() << "engines pull: nobody waits";
  if (!peers.trainer()) {
    try {
      transport->run({0, 0, 0, plan.model.parameters.size(), nullptr}, Deadline::after(0.2));
      ADD_FAILURE() << "nothing was sent, and yet it arrived";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::deadline);
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

std::vector<Case> cases(MemoryKind memory) {
  std::vector<Case> result;
  for (const std::uint64_t dp : {1, 2, 4}) {
    for (const auto family : {Family::llama, Family::qwen2}) {
      result.push_back({"direct", Method::sharded, dp, family, memory});
      for (const auto method : {Method::sharded, Method::broadcast})
        result.push_back({memory == MemoryKind::cuda ? "nccl" : "mpi", method, dp, family, memory});
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Host, TransportTest, testing::ValuesIn(cases(MemoryKind::host)));
INSTANTIATE_TEST_SUITE_P(Gpu, TransportTest, testing::ValuesIn(cases(MemoryKind::cuda)));

TEST(TransportRegistry, UnknownNamesAndImpossibleMethodsAreRefused) {
  EXPECT_THROW(make_transport("pigeon", Method::sharded, MemoryKind::host), Error);
  EXPECT_THROW(make_transport("direct", Method::broadcast, MemoryKind::host), Error);
}

}  // namespace
}  // namespace weightcast
