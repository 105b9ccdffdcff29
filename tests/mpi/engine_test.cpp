// An engine that serves while it is updated: what readers see, what is admitted, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "harness/faulty_transport.hpp"
#include "harness/update_rig.hpp"

namespace weightcast {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_harness::UpdateRig;

/// Stops a movement on this rank until somebody lets it pass.
struct Gate {
  std::atomic<bool> closed{false}, reached{false};

  void pass() {
    if (!closed) return;
    reached = true;
    wait_until([&] { return !closed; });
  }
  static void wait_until(FunctionRef<bool()> condition) {
    const auto limit = Deadline::after(15);
    while (!condition() && !limit.passed()) std::this_thread::yield();
    EXPECT_TRUE(condition()) << "in 15 s";
  }
};

class GatedTransport final : public Transport {
 public:
  GatedTransport(std::unique_ptr<Transport> inner, Gate& gate) : inner_(std::move(inner)), gate_(gate) {}
  std::string_view name() const noexcept override { return inner_->name(); }
  std::optional<std::string> probe(const Peers& peers, int rank, int other) const override {
    return inner_->probe(peers, rank, other);
  }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    inner_->attach(peers, plan, endpoints, deadline);
  }
  void run(const Batch& batch, Deadline deadline) override {
    gate_.pass();
    inner_->run(batch, deadline);
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }

 private:
  std::unique_ptr<Transport> inner_;
  Gate& gate_;
};

UpdateRig::Wrap through(Gate& gate) {
  return [&gate](std::unique_ptr<Transport> inner) { return std::make_unique<GatedTransport>(std::move(inner), gate); };
}

std::optional<Error> error_of(FunctionRef<void()> call) {
  try {
    call();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

/// What a probe of the whole model must answer while it has these weights.
Digest digest_of(const UpdateRig& rig, const testing_harness::RandomWeights& weights) {
  std::vector<Digest> digests;
  for (std::size_t p = 0; p < rig.plan.model.parameters.size(); ++p)
    digests.push_back(digest_bytes(weights.bytes(p), 0));
  return digest_of_model(rig.plan.model, digests);
}

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (testing_harness::world_size() < 2) GTEST_SKIP() << "needs an engine rank";
  }
  /// Whether this rank takes requests.
  static bool serving(const UpdateRig& rig) { return rig.engine && rig.caller(); }
};

TEST_F(EngineTest, AProbeIsTheDigestOfWhatIsServed) {
  UpdateRig rig({});
  const auto& parameters = rig.plan.model.parameters;
  if (serving(rig)) {
    const auto all = rig.engine->probe();
    EXPECT_EQ(all.version, 1u);
    EXPECT_EQ(all.digest, digest_of(rig, rig.seed1));
    std::vector<std::string> names;
    std::vector<TensorInfo> infos;
    std::vector<Digest> digests;
    for (const std::size_t p : {parameters.size() - 1, std::size_t{0}, std::size_t{3}}) {
      names.push_back(parameters[p].info.name);
      infos.push_back(parameters[p].info);
      digests.push_back(digest_bytes(rig.seed1.bytes(p), 0));
    }
    EXPECT_EQ(rig.engine->probe(names).digest, digest_of_set(infos, digests));
    EXPECT_EQ(error_of([&] { rig.engine->probe({"no.such.weight"}); })->code(), ExitCode::usage);
  }
  ASSERT_FALSE(rig.update(0, 2));
  if (serving(rig)) {
    EXPECT_EQ(rig.engine->probe().digest, digest_of(rig, rig.seed2));
    EXPECT_EQ(rig.engine->probe().version, 2u);
  }
  ASSERT_FALSE(rig.rollback(1));
  if (serving(rig)) {
    EXPECT_EQ(rig.engine->probe().digest, digest_of(rig, rig.seed1));
    EXPECT_EQ(rig.engine->probe().version, 1u);
  }
}

TEST_F(EngineTest, AProbeSeesTheSlotAndNotWhatWasCommitted) {
  UpdateRig rig({});
  const bool guilty = rig.world.rank() == rig.world.size() - 1;
  if (guilty)
    rig.engine->store().pin().slot().data[rig.plan.ranks[rig.tp_rank()].shards[1].destination_offset] ^= std::byte{1};
  rig.world.barrier(rig.deadline());
  if (serving(rig) && rig.plan.dp == 1) {
    EXPECT_EQ(rig.engine->probe().digest == digest_of(rig, rig.seed1), rig.plan.copy(rig.plan.tp - 1, 1));
  }
  rig.world.barrier(rig.deadline());
}

TEST_F(EngineTest, ReadsGoOnWhileBytesMove) {
  for (const auto commit : {CommitMode::swap, CommitMode::in_place}) {
    Gate gate;
    UpdateRig rig({.commit = commit}, through(gate));
    gate.closed = serving(rig);
    EXPECT_FALSE(rig.together([&] {
      if (rig.trainer) {
        rig.trainer->update_weights(0, 2);
        return;
      }
      std::thread update([&] { EXPECT_TRUE(rig.engine->update_weights(2).success); });
      Gate::wait_until([&] { return gate.reached.load(); });
      for (int i = 0; i < 20; ++i) {
        if (commit == CommitMode::swap) {
          const auto answer = rig.engine->probe();
          EXPECT_EQ(answer.version, 1u);
          EXPECT_EQ(answer.digest, digest_of(rig, rig.seed1));
        } else {
          const auto error = error_of([&] { rig.engine->probe(); });
          ASSERT_TRUE(error);
          EXPECT_EQ(error->code(), ExitCode::busy);
          EXPECT_THAT(error->what(), HasSubstr("dirty"));
        }
      }
      gate.closed = false;
      update.join();
      const auto answer = rig.engine->probe();
      EXPECT_EQ(answer.version, 2u);
      EXPECT_EQ(answer.digest, digest_of(rig, rig.seed2));
    }));
  }
}

TEST_F(EngineTest, ReadersSeeOneVersionAtATime) {
  const auto engines = static_cast<std::uint64_t>(testing_harness::world_size()) - 1;
  for (const std::uint64_t dp : {1, 2}) {
    if (engines % dp != 0) continue;
    UpdateRig rig({.transport = "direct", .dp = dp});
    const std::array<Digest, 2> expected{digest_of(rig, rig.seed2), digest_of(rig, rig.seed1)};
    std::atomic<std::uint64_t> served{1}, reads{0};
    std::vector<std::jthread> readers;
    for (int r = 0; r < 3 && serving(rig); ++r) {
      readers.emplace_back([&](const std::stop_token& stop) {
        for (std::size_t n = 0; !stop.stop_requested(); ++n, ++reads) {
          const auto least = served.load();
          const auto probe = rig.engine->probe();
          EXPECT_EQ(probe.digest, expected[probe.version % 2]) << "version " << probe.version;
          EXPECT_GE(probe.version, least);
          const auto p = n % rig.plan.model.parameters.size();
          const auto& info = rig.plan.model.parameters[p].info;
          const auto rows = rig.engine->get_weights_by_parameter_name(info.name, 1000);
          const auto& weights = rows.version % 2 == 0 ? rig.seed2 : rig.seed1;
          std::vector<float> values(rows.values.size());
          for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = *to_float(info.dtype, weights.bytes(p).data() + 2 * i);
          EXPECT_EQ(std::memcmp(values.data(), rows.values.data(), values.size() * sizeof(float)), 0) << info.name;
        }
      });
    }
    for (std::uint64_t version = 2; version <= 50; ++version) {
      ASSERT_FALSE(rig.update(version % 2, version));
      served = version;
    }
    if (serving(rig)) Gate::wait_until([&] { return reads > 10; });
  }
}

TEST_F(EngineTest, AnUpdateWaitsForTheReadersOfItsSlotAndNamesThem) {
  UpdateRig rig({.timeout_s = 1});
  std::optional<ParameterStore::Pin> held;
  if (rig.world.rank() == 1) held.emplace(rig.engine->store().pin("probe request 17"));
  ASSERT_FALSE(rig.update(0, 2)) << "the other slot is free";
  const auto error = rig.update(1, 3);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::deadline);
  EXPECT_EQ(error->origin().rank, 1);
  EXPECT_EQ(error->origin().stage, "prepare");
  EXPECT_THAT(error->what(), AllOf(HasSubstr("version 1 is still read"), HasSubstr("probe request 17")));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
  held.reset();
  ASSERT_FALSE(rig.update(1, 3));
  EXPECT_TRUE(rig.serves(3, rig.seed1));
}

TEST_F(EngineTest, ASecondUpdateIsRefusedAtOnceWithBothVersions) {
  Gate gate;
  UpdateRig rig({}, through(gate));
  gate.closed = rig.caller();
  constexpr int attempts = 1000;
  EXPECT_FALSE(rig.together([&] {
    std::thread first([&] {
      if (rig.trainer) {
        EXPECT_TRUE(rig.trainer->update_weights(0, 2).committed);
      } else {
        EXPECT_TRUE(rig.engine->update_weights().success);
      }
    });
    Gate::wait_until([&] { return gate.reached.load(); });
    int refused = 0;
    Stopwatch watch;
    double longest_s = 0;
    for (int i = 0; i < attempts; ++i) {
      watch.lap();
      const auto error = error_of([&] {
        if (rig.trainer) {
          rig.trainer->update_weights(1, 3);
        } else if (i % 2 == 0) {
          const auto answer = rig.engine->update_weights(3);
          EXPECT_FALSE(answer.success);
          EXPECT_EQ(answer.code, ExitCode::busy);
          answer.throw_if_refused();
        } else {
          rig.engine->rollback(3).throw_if_refused();
        }
      });
      longest_s = std::max(longest_s, watch.lap());
      if (!error || error->code() != ExitCode::busy) continue;
      const std::string_view text = error->what();
      if (text.find("version 2 ") != text.npos && text.find("version 3 ") != text.npos) ++refused;
    }
    gate.closed = false;
    first.join();
    EXPECT_EQ(refused, attempts);
    if (rig.world.rank() < 2)
      std::printf("rank %d: %d of %d second updates refused, the slowest in %.1f us\n", rig.world.rank(), refused,
                  attempts, 1e6 * longest_s);
  }));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(EngineTest, AnotherVersionThanWasAskedForIsRefused) {
  UpdateRig rig({});
  const auto error = rig.together([&] {
    if (rig.trainer) {
      rig.trainer->update_weights(0, 2);
    } else {
      rig.engine->update_weights(5).throw_if_refused();
    }
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("version 5"), HasSubstr("2")));
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  ASSERT_FALSE(rig.update(0, 2));
}

TEST_F(EngineTest, WhenOneReplicaFailsNeitherSwitches) {
  if (testing_harness::world_size() != 5) GTEST_SKIP() << "needs two replicas of two";
  testing_harness::Fault fault;
  UpdateRig rig({.dp = 2}, testing_harness::injecting(fault));
  fault = {.kind = testing_harness::Fault::Kind::bit_flip, .ranks = {3, 4}, .parameter = 3, .byte = 5, .bit = 4};
  const auto error = rig.together([&] {
    if (rig.trainer) {
      rig.trainer->update_weights(0, 2);
      return;
    }
    const auto answer = rig.engine->update_weights(2);
    EXPECT_FALSE(answer.success);
    EXPECT_EQ(answer.code, ExitCode::mismatch);
    EXPECT_THAT(answer.message, AllOf(HasSubstr("rank 3: "), HasSubstr("rank 4: ")));
    answer.throw_if_refused();
  });
  fault = {};
  ASSERT_TRUE(error);
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  if (serving(rig)) {
    EXPECT_EQ(rig.engine->probe().digest, digest_of(rig, rig.seed1));
  }
  ASSERT_FALSE(rig.update(0, 3));
  EXPECT_TRUE(rig.serves(3, rig.seed2));
}

/// A call that is out of order, and what the refusal must say.
struct WrongCall {
  FunctionRef<void()> call;
  std::string says;
};

void expect_refused(std::initializer_list<WrongCall> calls) {
  for (const auto& [call, says] : calls) {
    const auto error = error_of(call);
    ASSERT_TRUE(error) << says;
    EXPECT_EQ(error->code(), ExitCode::config) << says;
    EXPECT_THAT(error->what(), HasSubstr(says));
    EXPECT_FALSE(error->hint().empty()) << says;
  }
}

TEST_F(EngineTest, CallsOutOfOrderAreRefusedByName) {
  const auto plan = make_plan(testing_harness::small_model(), 1, 1);
  const auto& info = plan.model.parameters[0].info;
  Trainer early(plan);
  Engine alone(plan, 0, CommitMode::swap, MemoryKind::host);
  const std::string before = " before init_parameter_update_group()";
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  expect_refused({
      {[&] { alone.update_weights().throw_if_refused(); }, "update_weights()" + before},
      {[&] { alone.update_parameter_from_distributed(info.name, info.dtype, info.shape).throw_if_refused(); },
       "update_parameter_from_distributed()" + before},
      {[&] { alone.rollback(1).throw_if_refused(); }, "rollback()" + before},
      {[&] { alone.get_weights_by_parameter_name(info.name, 1); }, "get_weights_by_parameter_name()" + before},
      {[&] { alone.probe(); }, "probe()" + before},
      {[&] { alone.shutdown(); }, "shutdown()" + before},
      {[&] { alone.group(); }, "no update group yet"},
      {[&] { early.update_weights(0, 2); }, "never loaded"},
      {[&] { early.rollback(1); }, "no update group yet"},
      {[&] { early.init_parameter_update_group(world, {}, 1); }, "init_parameter_update_group() before load()"},
  });

  UpdateRig rig({});
  const auto load = [&](std::size_t, std::uint64_t, std::span<std::byte>) {};
  if (rig.trainer) {
    expect_refused({{[&] { rig.trainer->group().receive(Deadline::after(1)); }, "receive() on the trainer"},
                    {[&] { rig.trainer->update_weights(7, 2); }, "weights 7 were never loaded"}});
    EXPECT_EQ(error_of([&] { rig.trainer->load(rig.seed1, 1); })->code(), ExitCode::config);
  } else {
    expect_refused({
        {[&] { rig.engine->init_parameter_update_group(world, {}); },
         "init_parameter_update_group() after init_parameter_update_group()"},
        {[&] { rig.engine->load(2, load, 1); }, "load() after init_parameter_update_group()"},
        {[&] { rig.engine->group().publish({}); }, "publish() on an engine rank"},
        {[&] { rig.engine->group().roll_back(2, 1); }, "roll_back() on an engine rank"},
    });
  }
  if (serving(rig)) expect_refused({{[&] { rig.engine->serve(); }, "serve() on tp rank 0"}});
  if (rig.engine && !rig.caller()) {
    const auto where = fmt::format(" on tp rank {}", rig.tp_rank());
    expect_refused({{[&] { rig.engine->update_weights().throw_if_refused(); }, "update_weights()" + where},
                    {[&] { rig.engine->probe(); }, "probe()" + where},
                    {[&] { rig.engine->shutdown(); }, "shutdown()" + where}});
  }
  ASSERT_FALSE(rig.update(0, 2)) << "nobody was disturbed";
  rig.world.barrier(rig.deadline());
  if (serving(rig)) {
    rig.engine->shutdown();
    expect_refused({{[&] { rig.engine->update_weights().throw_if_refused(); }, "update_weights() after shutdown()"},
                    {[&] { rig.engine->probe(); }, "probe() after shutdown()"},
                    {[&] { rig.engine->shutdown(); }, "shutdown() after shutdown()"}});
  }
}

TEST_F(EngineTest, AnEngineWithoutWeightsRefusesReadsUntilAnUpdate) {
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const auto tp = static_cast<std::uint64_t>(world.size()) - 1;
  const auto plan = make_plan(testing_harness::small_model(), tp, 1);
  const testing_harness::RandomWeights weights(plan.model, 1);
  if (world.rank() == 0) {
    Trainer trainer(plan);
    trainer.load(weights, 1);
    trainer.init_parameter_update_group(world, {.tp = tp}, 0);
    EXPECT_TRUE(trainer.update_weights(0, 1).committed);
  } else {
    Engine engine(plan, static_cast<std::size_t>(world.rank()) - 1, CommitMode::swap, MemoryKind::host);
    engine.init_parameter_update_group(world, {.tp = tp});
    if (world.rank() > 1) return engine.serve();
    const auto error = error_of([&] { engine.probe(); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ExitCode::busy);
    EXPECT_THAT(error->what(), HasSubstr("serves no version yet"));
    EXPECT_TRUE(engine.update_weights(1).success);
    EXPECT_EQ(engine.probe().version, 1u);
    engine.shutdown();
  }
}

TEST_F(EngineTest, AGroupCanBeFormedAgainAfterShutdown) {
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const auto tp = static_cast<std::uint64_t>(world.size()) - 1;
  const auto plan = make_plan(testing_harness::small_model(), tp, 1);
  const testing_harness::RandomWeights weights(plan.model, 1);
  Trainer trainer(plan);
  std::optional<Engine> engine;
  if (world.rank() == 0) trainer.load(weights, 1);
  if (world.rank() > 0)
    engine.emplace(plan, static_cast<std::size_t>(world.rank()) - 1, CommitMode::swap, MemoryKind::host);
  for (std::uint64_t version = 1; version <= 3; ++version) {
    if (world.rank() == 0) {
      trainer.init_parameter_update_group(world, {.tp = tp}, version - 1);
      EXPECT_TRUE(trainer.update_weights(0, version).committed);
    } else {
      engine->init_parameter_update_group(world, {.tp = tp});
      if (world.rank() > 1) {
        engine->serve();
        continue;
      }
      EXPECT_TRUE(engine->update_weights(version).success);
      EXPECT_EQ(engine->probe().version, version);
      engine->shutdown();
    }
  }
}

}  // namespace
}  // namespace weightcast
