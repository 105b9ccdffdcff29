// One conformance suite over every transport and method of this build.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "harness/replica_set.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/shard_digests.hpp"

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
  std::uint64_t trainers = 1;
  LayoutKind layout = LayoutKind::whole;
  MemoryKind trainer_memory = memory;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.transport << " " << name(c.method) << " dp " << c.dp << " " << name(c.family) << " " << name(c.memory)
       << " " << c.trainers << " " << name(c.layout) << " " << name(c.trainer_memory);
}

/// Counts how often each byte of the slot was announced.
class CountingObserver final : public Observer, public GpuObserver {
 public:
  explicit CountingObserver(const TransferPlan& plan, std::size_t tp_rank)
      : counts(plan.slot_bytes), shards_(plan.ranks[tp_rank].shards), schedule_(plan.ranks[tp_rank].schedule) {}
  void landed(const gpu::Stream&, const Part& part) noexcept override {
    for (const auto& segment : part.segments.of(schedule_.segments)) landed(segment);
  }
  void landed(const Shard& block) noexcept override {
    const auto& shard = shards_[block.parameter_index];
    // Where it says that it is in the parameter is where it is in the slot.
    const auto inside = block.destination_offset - shard.destination_offset;
    const auto pitch = std::max<std::uint64_t>(shard.destination_pitch, 1), row = inside / pitch;
    if (block.size_bytes() != 0 &&
        block.parameter_offset != shard.parameter_offset + row * shard.parameter_pitch + inside % pitch)
      ++misplaced;
    for (std::uint64_t r = 0; r < block.rows; ++r) {
      for (std::uint64_t i = 0; i < block.row_bytes; ++i)
        ++counts.at(block.destination_offset + r * block.destination_pitch + i);
    }
  }

  std::vector<int> counts;
  int misplaced = 0;

 private:
  const std::vector<Shard>& shards_;
  const Schedule& schedule_;
};

class TransportTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto& param = GetParam();
    if (const auto reason = testing_harness::why_not(param.memory, param.transport); !reason.empty())
      GTEST_SKIP() << reason;
    const auto world = static_cast<std::uint64_t>(testing_harness::world_size());
    const auto engines = world < param.trainers ? 0 : world - param.trainers;
    if (engines == 0 || engines % param.dp != 0) GTEST_SKIP() << "needs a multiple of " << param.dp << " engine ranks";
    const auto model = param.family == Family::mixtral ? testing_harness::many_pieces_model()
                                                       : testing_harness::small_model(param.family);
    const auto cuts = possible_tp(model);
    const auto can_cut = [&](std::uint64_t tp) { return std::ranges::find(cuts, tp) != cuts.end(); };
    if (!can_cut(engines / param.dp)) GTEST_SKIP() << "the model cannot be cut so";
    if (param.layout == LayoutKind::tp && !can_cut(param.trainers)) GTEST_SKIP() << "the layout cannot be cut so";
    testing_harness::stand_apart(param.transport == "nccl");
    group = Communicator::duplicate(MPI_COMM_WORLD);
    plan =
        make_plan(model, engines / param.dp, param.dp, testing_harness::layout_of(model, param.layout, param.trainers));
    Placement placement;
    const bool trains = static_cast<std::uint64_t>(testing_harness::world_rank()) < param.trainers;
    if ((trains ? param.trainer_memory : param.memory) == MemoryKind::cuda)
      placement = {MemoryKind::cuda, testing_harness::world_rank() % gpu::count()};
    peers = Peers::meet(group, plan.roster(), placement, deadline());
    for (std::uint64_t seed : {1, 2}) weights.push_back(std::make_unique<RandomWeights>(plan.model, seed));
    if (peers.trainer()) {
      const auto rank = static_cast<std::size_t>(peers.rank());
      for (const auto& source : weights) {
        auto& buffer = sources.emplace_back(
            std::make_unique<Buffer>(Buffer::allocate(placement, plan.source_bytes(rank), true, "test source")));
        for (const auto& piece : plan.sources.ranks[rank].pieces)
          testing_harness::write_piece(buffer->region(), plan.model, piece, *source);
        endpoints.sources.push_back(buffer.get());
      }
    } else {
      store = std::make_unique<ParameterStore>(plan, CommitMode::swap, placement);
      endpoints.sinks = store->slots();
      if (plan.dp > 1 || param.memory == MemoryKind::cuda) endpoints.shared_sinks = store->share();
    }
    transport = make_transport(param.transport, param.method, param.memory);
    for (int a = 0; a < group.size(); ++a) {
      for (int b = a + 1; b < group.size(); ++b) ASSERT_EQ(transport->probe(peers, a, b), std::nullopt);
    }
    transport->attach(peers, plan, endpoints, deadline());
    group.barrier(deadline());
  }

  static Deadline deadline() { return Deadline::after(20); }
  Range everything() const { return {0, plan.model.parameters.size()}; }

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
      run({source, sink, everything()});
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
  run({0, 0, {0, all}});
  for (std::size_t first = 0; first < all; first += 3) {
    const auto count = std::min<std::size_t>(first % 4 + 1, all - first);
    run({1, 0, {first, count}});
    if (store) {
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[1], first, count));
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[0], 0, first));
      EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[0], first + count));
    }
    run({0, 0, {first, count}});
  }
}

TEST_P(TransportTest, ATrainerThatWaitsWorks) {
  if (GetParam().transport != "mpi") GTEST_SKIP() << "the trainer waits for nobody, or for its GPU";
  if (GetParam().trainers > 1) GTEST_SKIP() << "a trainer rank that has little to send does not wait";
  constexpr int tag = 1;
  Batch batch{0, 0, everything()};
  int worked = 0;
  bool called = false;
  const auto call_engines = [&] {
    for (auto engine = static_cast<int>(GetParam().trainers); engine < group.size() && !called; ++engine)
      MPI_Send(nullptr, 0, MPI_BYTE, engine, tag, MPI_COMM_WORLD);
    called = true;
  };
  const auto work = [&] {
    call_engines();
    return worked++ < 3;
  };
  // The engines come when the trainer has begun to work: one that waits for them without would wait for ever.
  if (peers.trainer()) {
    batch.idle = work;
    transport->run(batch, deadline());
    call_engines();  // small shards are under way before anybody has to wait
  } else {
    MPI_Recv(nullptr, 0, MPI_BYTE, 0, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    transport->run(batch, deadline());
    EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 0).bytes(), *weights[0]));
  }
}

TEST_P(TransportTest, AnnouncesEveryByteOnce) {
  Batch batch{0, 0, everything()};
  int worked = 0;
  const auto work = [&] { return worked++ < 3; };
  if (peers.trainer()) batch.idle = work;
  std::optional<CountingObserver> observer;
  if (store) {
    observer.emplace(plan, peers.tp_rank());
    batch.observer = &*observer;
    batch.gpu_observer = &*observer;
  }
  run(batch);
  if (!store) return;
  EXPECT_EQ(observer->misplaced, 0);
  std::vector<int> expected(plan.slot_bytes);
  for (const auto& tensor : plan.engine_tensors)
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(tensor.offset), tensor.size_bytes, 1);
  for (const auto& padding : plan.ranks[peers.tp_rank()].padding)
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(padding.offset), padding.size_bytes, 0);
  EXPECT_EQ(observer->counts, expected);
}

TEST_P(TransportTest, DigestsWhatItCopiesWithinAGpu) {
  if (GetParam().memory == MemoryKind::host) GTEST_SKIP() << "on a host, what arrives is announced";
  std::optional<GpuDigests> digests;
  std::optional<CountingObserver> observer;
  for (std::size_t first = 0, count = plan.model.parameters.size(); first < 3; ++first, count = 2) {
    Batch batch{first % 2, 1, {first, count}};
    gpu::DigestTarget target;
    if (store) {
      if (!digests) digests.emplace(GpuDigests::of_slot(plan, peers.tp_rank(), peers.placement().gpu));
      observer.emplace(plan, peers.tp_rank());
      digests->begin(store->slots()[1].data);
      target = digests->target();
      batch.gpu_observer = &*observer;
      batch.digests = &target;
    }
    run(batch);
    if (!store) continue;
    EXPECT_TRUE(slot_equals(plan, peers.tp_rank(), held(*store, 1).bytes(), *weights[first % 2], first, count));
    // Each segment is either digested by who copies it or announced.
    const auto& schedule = plan.ranks[peers.tp_rank()].schedule;
    const auto results = digests->finish(deadline());
    const auto slot = held(*store, 1);
    std::vector<Digest> expected(plan.model.parameters.size());
    for (const auto& segment : schedule.segments) {
      const auto p = segment.parameter_index;
      if (p < first || p >= first + count) continue;
      const auto place = peers.place(static_cast<int>(segment.from));
      const bool beside =
          GetParam().transport == "direct" && GetParam().dp == 1 && same_gpu(place, peers.place(peers.rank()));
      if (beside) expected[p] += digest_of_shard(segment, slot.bytes().data());
      EXPECT_EQ(observer->counts[segment.destination_offset], beside ? 0 : 1);
    }
    for (auto p = first; p < first + count; ++p)
      EXPECT_EQ(results[p], expected[p]) << plan.model.parameters[p].info.name;
  }
  group.barrier(deadline());
}

TEST_P(TransportTest, ShardedSendsEachShardOnceForEachTpRank) {
  run({0, 0, everything()});
  if (!peers.trainer() || GetParam().method != Method::sharded) return;
  EXPECT_EQ(transport->traffic().egress_bytes, plan.egress_bytes_of(static_cast<std::size_t>(peers.rank())));
}

TEST_P(TransportTest, ADeadlineEndsARunThatTheTrainerDoesNotJoin) {
  if (GetParam().transport == "direct") GTEST_SKIP() << "engines pull: nobody waits";
  if (!peers.trainer()) {
    try {
      transport->run({0, 0, everything()}, Deadline::after(0.2));
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
      if (memory == MemoryKind::cuda)
        result.push_back({"direct", Method::sharded, dp, family, memory, 1, LayoutKind::whole, MemoryKind::host});
    }
  }
  for (const std::uint64_t trainers : {1, 2}) {
    const auto layout = trainers == 1 ? LayoutKind::whole : LayoutKind::fsdp;
    for (const std::uint64_t dp : {1, 2}) {
      result.push_back({"direct", Method::sharded, dp, Family::mixtral, memory, trainers, layout});
      if (memory == MemoryKind::host)
        result.push_back({"mpi", Method::sharded, dp, Family::mixtral, memory, trainers, layout});
    }
  }
  for (const std::uint64_t trainers : {2, 3, 5}) {
    for (const auto layout : {LayoutKind::whole, LayoutKind::fsdp, LayoutKind::tp, LayoutKind::custom}) {
      for (const std::uint64_t dp : {1, 2}) {
        result.push_back({"direct", Method::sharded, dp, Family::qwen2, memory, trainers, layout});
        // Communicators of ranks that share a GPU are formed slowly.
        const bool few = memory == MemoryKind::cuda && (layout == LayoutKind::whole || layout == LayoutKind::tp);
        for (const auto method : {Method::sharded, Method::broadcast}) {
          const auto* const name = memory == MemoryKind::cuda ? "nccl" : "mpi";
          if (!few) result.push_back({name, method, dp, Family::qwen2, memory, trainers, layout});
        }
        if (memory == MemoryKind::cuda)
          result.push_back({"direct", Method::sharded, dp, Family::qwen2, memory, trainers, layout, MemoryKind::host});
      }
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Host, TransportTest, testing::ValuesIn(cases(MemoryKind::host)));
INSTANTIATE_TEST_SUITE_P(Gpu, TransportTest, testing::ValuesIn(cases(MemoryKind::cuda)));

TEST(TransportRegistry, UnknownNamesAndImpossibleMethodsAreRefused) {
  EXPECT_THROW(make_transport("pigeon", Method::sharded, MemoryKind::host), Error);
  EXPECT_THROW(make_transport("direct", Method::broadcast, MemoryKind::host), Error);
  EXPECT_THROW(make_transport("mpi", Method::sharded, MemoryKind::cuda), Error);
  EXPECT_THROW(make_transport("nccl", Method::broadcast, MemoryKind::host), Error);
}

/// Two ranks of a group that never met: probe() asks nobody.
Peers pair(const Place& a, const Place& b) {
  return {nullptr, {.trainers = 0, .tp = 2, .dp = 1}, {a, b}};
}

TEST(TransportRegistry, EachPairThatCannotBeServedIsRefusedWithItsReason) {
  const Place here{MemoryKind::host, "here", ""}, there{MemoryKind::host, "there", ""};
  const Place first{{MemoryKind::cuda, 0}, "here", "0000:01:00.0"},
      second{{MemoryKind::cuda, 1}, "here", "0000:02:00.0"}, far{{MemoryKind::cuda, 0}, "there", "0000:01:00.0"};
  // Two engine ranks, in either order.
  const auto refusal = [](std::string_view name, Method method, const Place& a, const Place& b) {
    const auto transport = make_transport(name, method, a.placement.kind);
    const auto reason = transport->probe(pair(a, b), 0, 1);
    EXPECT_EQ(reason, transport->probe(pair(b, a), 0, 1)) << "in the other order";
    return reason.value_or("");
  };
  const std::string no_host = "the weights are not in host memory", no_device = "the weights are not in device memory";
  for (const auto method : {Method::sharded, Method::broadcast}) {
    EXPECT_EQ(refusal("mpi", method, here, here), "");
    EXPECT_EQ(refusal("mpi", method, here, there), "");
    EXPECT_EQ(refusal("mpi", method, here, first), no_host);
  }
  EXPECT_EQ(refusal("direct", Method::sharded, here, here), "");
  EXPECT_EQ(refusal("direct", Method::sharded, here, there), "the ranks are on several hosts");
  EXPECT_EQ(refusal("direct", Method::sharded, here, first), no_host);
  EXPECT_EQ(refusal("direct", Method::sharded, first, first), "");
  EXPECT_EQ(refusal("direct", Method::sharded, first, second), "");
  EXPECT_EQ(refusal("direct", Method::sharded, first, far), "the ranks are on several hosts");
  EXPECT_EQ(refusal("direct", Method::sharded, first, here), no_device);
  // A trainer rank on the host, and the engine on a GPU of that host.
  const auto pulls = [](const Place& trainer, const Place& engine) {
    const Peers peers{nullptr, {}, {trainer, engine}};
    return make_transport("direct", Method::sharded, MemoryKind::cuda)->probe(peers, 0, 1).value_or("");
  };
  EXPECT_EQ(pulls(here, first), "");
  EXPECT_EQ(pulls(there, first), "the ranks are on several hosts");
  EXPECT_EQ(pulls(first, here), no_device);
  if (gpu::nccl_version() == "not built in") return;
  ::unsetenv("NCCL_HOSTID");
  for (const auto method : {Method::sharded, Method::broadcast}) {
    EXPECT_EQ(refusal("nccl", method, first, second), "");
    EXPECT_EQ(refusal("nccl", method, first, far), "");
    EXPECT_EQ(refusal("nccl", method, first, here), no_device);
    EXPECT_EQ(refusal("nccl", method, first, first),
              "ranks 0 and 1 share a GPU (here 0000:01:00.0): NCCL needs one for each rank, see --gpus");
  }
}

TEST(TransportRegistry, AllRanksLearnWhyATransportCannotBeUsed) {
  const auto group = Communicator::duplicate(MPI_COMM_WORLD);
  const auto deadline = Deadline::after(20);
  auto peers = Peers::meet(group, form_roster({}, 1, group.size()), MemoryKind::host, deadline);
  EXPECT_TRUE(survey_transport("direct", Method::sharded, peers, deadline).reasons.empty());
  EXPECT_THAT(survey_transport("nccl", Method::sharded, peers, deadline).reasons,
              testing::ElementsAre("rank 0: the weights are not in device memory"));
  EXPECT_THAT(survey_transport("direct", Method::broadcast, peers, deadline).reasons,
              testing::ElementsAre("rank 0: transport direct has no method broadcast: engines pull what they need"));
  peers.places.back().host = "elsewhere";
  EXPECT_THAT(survey_transport("direct", Method::sharded, peers, deadline).reasons,
              testing::ElementsAre("rank 0: the ranks are on several hosts"));
  EXPECT_TRUE(survey_transport("mpi", Method::sharded, peers, deadline).reasons.empty());
}

}  // namespace
}  // namespace weightcast
