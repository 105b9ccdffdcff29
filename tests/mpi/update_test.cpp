// The transaction: all ranks switch versions, or none does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "harness/faulty_transport.hpp"
#include "harness/update_rig.hpp"

namespace weightcast {
namespace {

using testing::HasSubstr;
using testing_harness::UpdateRig;

class UpdateTest : public testing::Test {
 protected:
  void SetUp() override {
    if (testing_harness::world_size() < 2) GTEST_SKIP() << "needs an engine rank";
  }
};

TEST_F(UpdateTest, CommitsOnAllRanksAndAlternates) {
  for (const char* transport : {"mpi", "direct", "auto"}) {
    UpdateRig rig({.transport = transport});
    EXPECT_TRUE(rig.serves(1, rig.seed1));
    std::optional<Digest> digest;
    for (std::uint64_t version = 2; version < 8; ++version) {
      UpdateResult result;
      ASSERT_FALSE(rig.update(version % 2, version, &result));
      EXPECT_EQ(result.committed, rig.caller());
      if (rig.caller()) {
        EXPECT_EQ(result.version, version);
        EXPECT_TRUE(result.digest);
        EXPECT_NE(result.digest, digest);
      }
      digest = result.digest;
      EXPECT_TRUE(rig.serves(version, version % 2 == 0 ? rig.seed2 : rig.seed1));
    }
  }
}

TEST_F(UpdateTest, TheDigestIsThatOfTheWholeModelWhateverTheTp) {
  UpdateRig rig({});
  UpdateResult result;
  ASSERT_FALSE(rig.update(0, 2, &result));
  std::vector<Digest> digests;
  for (std::size_t p = 0; p < rig.plan.model.parameters.size(); ++p)
    digests.push_back(digest_bytes(rig.seed2.bytes(p), 0));
  const auto expected = digest_of_model(rig.plan.model, digests);
  if (rig.caller()) {
    EXPECT_EQ(result.digest, expected);
  }
  if (rig.engine) {
    EXPECT_EQ(rig.engine->store().pin(2, rig.deadline()).version().digest, expected);
  }
}

TEST_F(UpdateTest, ReplicasSwitchTogether) {
  if ((testing_harness::world_size() - 1) % 2 != 0) GTEST_SKIP() << "needs an even number of engine ranks";
  for (const char* transport : {"mpi", "direct"}) {
    UpdateRig rig({.transport = transport, .dp = 2});
    ASSERT_FALSE(rig.update(0, 2));
    EXPECT_TRUE(rig.serves(2, rig.seed2));
  }
}

TEST_F(UpdateTest, TheSameVersionAgainMovesNothing) {
  UpdateRig rig({});
  ASSERT_FALSE(rig.update(0, 2));
  UpdateResult again;
  ASSERT_FALSE(rig.update(0, 2, &again));
  EXPECT_EQ(again.no_op, rig.caller());
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(UpdateTest, TheSameVersionWithOtherContentIsRefused) {
  UpdateRig rig({});
  ASSERT_FALSE(rig.update(0, 2));
  const auto error = rig.update(1, 2);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(UpdateTest, AnOlderBaseIsRefusedAndTheNextUpdateSucceeds) {
  UpdateRig rig({});
  ASSERT_FALSE(rig.update(0, 2));
  const auto error = rig.together([&] {
    if (rig.trainer) {
      rig.trainer->group().publish({1, 3, 1, nullptr, 0, rig.plan.model.parameters.size()});
    } else {
      rig.engine->update_weights().throw_if_refused();
    }
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_THAT(error->what(), HasSubstr("based on version 1"));
  EXPECT_EQ(error->origin().rank, 1);
  EXPECT_TRUE(rig.serves(2, rig.seed2));
  ASSERT_FALSE(rig.update(1, 3));
  EXPECT_TRUE(rig.serves(3, rig.seed1));
}

TEST_F(UpdateTest, OneParameterAtATimeCommitsWithTheLast) {
  UpdateRig rig({});
  const auto& parameters = rig.plan.model.parameters;
  for (std::size_t p = parameters.size(); p-- > 0;) {  // any order will do
    const auto& info = parameters[p].info;
    UpdateResult result;
    ASSERT_FALSE(rig.update_parameter(info, &result));
    EXPECT_EQ(result.committed, rig.caller() && p == 0);
    EXPECT_TRUE(p == 0 ? rig.serves(2, rig.seed2) : rig.serves(1, rig.seed1));
  }
}

TEST_F(UpdateTest, ANewcomerIsRefusedAndTheOpenUpdateGoesOn) {
  UpdateRig rig({});
  const auto& parameters = rig.plan.model.parameters;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const auto& info = parameters[p].info;
    if (p == parameters.size() / 2) {
      const auto error = rig.update(1, 3);
      ASSERT_TRUE(error);
      EXPECT_EQ(error->code(), ExitCode::busy);
      EXPECT_THAT(error->what(), testing::AllOf(HasSubstr("version 2"), HasSubstr("version 3")));
    }
    ASSERT_FALSE(rig.update_parameter(info));
  }
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(UpdateTest, AWrongShapeIsRefusedByEveryRankAndDropsTheOpenUpdate) {
  UpdateRig rig({});
  const auto& info = rig.plan.model.parameters[1].info;
  ASSERT_FALSE(rig.update_parameter(info));
  const auto error = rig.together([&] {
    if (rig.trainer) {
      rig.trainer->update_parameter(0, 2, info.name);
    } else {
      const auto answer = rig.engine->update_parameter_from_distributed(info.name, DType::F32, info.shape);
      EXPECT_FALSE(answer.success);
      EXPECT_EQ(answer.code, ExitCode::config);
      EXPECT_THAT(answer.message, testing::AllOf(HasSubstr("rank 1"), HasSubstr(info.name)));
      answer.throw_if_refused();
    }
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(UpdateTest, ReadsAreUnfusedAndGathered) {
  UpdateRig rig({});
  if (!rig.engine || !rig.caller()) return;
  for (std::size_t p = 0; p < rig.plan.model.parameters.size(); ++p) {
    const auto& info = rig.plan.model.parameters[p].info;
    for (const std::uint64_t rows : {1, 10, 1000}) {
      const auto [version, values, waited_s] = rig.engine->get_weights_by_parameter_name(info.name, rows);
      EXPECT_EQ(version, 1u);
      const auto columns = *info.elements() / info.shape[0];
      ASSERT_EQ(values.size(), std::min(rows, info.shape[0]) * columns) << info.name;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float expected = *to_float(info.dtype, rig.seed1.bytes(p).data() + 2 * i);
        ASSERT_EQ(std::memcmp(&values[i], &expected, sizeof expected), 0) << info.name << " element " << i;
      }
    }
  }
  EXPECT_THROW(rig.engine->get_weights_by_parameter_name("no.such.weight", 1), Error);
}

TEST_F(UpdateTest, InPlaceServesNothingAfterAFailureUntilAFullUpdate) {
  UpdateRig rig({.commit = CommitMode::in_place});
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
  // A claim that the sent bytes cannot meet fails in VERIFY, when the only slot has been overwritten.
  const auto parameters = rig.plan.model.parameters.size();
  SourceClaim wrong(rig.plan);
  for (std::size_t p = 0; p < parameters; ++p) wrong.complete(p);
  const auto error = rig.together([&] {
    if (rig.trainer) {
      rig.trainer->group().publish({2, 3, 1, &wrong, 0, parameters});
    } else {
      rig.engine->update_weights().throw_if_refused();
    }
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::mismatch);
  EXPECT_EQ(error->origin().rank, 0);
  if (rig.engine) {
    EXPECT_TRUE(rig.engine->store().dirty());
    EXPECT_THROW(rig.engine->store().pin(), Error);
  }
  ASSERT_FALSE(rig.update(1, 4));
  EXPECT_TRUE(rig.serves(4, rig.seed1));
}

TEST_F(UpdateTest, RollsBackToWhatTheOtherSlotHolds) {
  for (const char* transport : {"mpi", "direct"}) {
    UpdateRig rig({.transport = transport});
    ASSERT_TRUE(rig.rollback(7)) << "nobody holds it";
    UpdateResult two, three, again;
    ASSERT_FALSE(rig.update(0, 2, &two));
    ASSERT_FALSE(rig.rollback(1)) << "to what was there before the group";
    EXPECT_TRUE(rig.serves(1, rig.seed1));
    ASSERT_FALSE(rig.rollback(2, &again)) << "and forth";
    EXPECT_EQ(again.committed, rig.caller());
    EXPECT_EQ(again.digest, two.digest);
    EXPECT_TRUE(rig.serves(2, rig.seed2));
    ASSERT_FALSE(rig.update(1, 3, &three));
    const auto error = rig.rollback(1);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ExitCode::config);
    EXPECT_THAT(error->what(), HasSubstr("version 1 is not held"));
    EXPECT_TRUE(rig.serves(3, rig.seed1));
    ASSERT_FALSE(rig.rollback(2));
    EXPECT_TRUE(rig.serves(2, rig.seed2));
    ASSERT_FALSE(rig.update(1, 4)) << "version 2 is the base again";
    EXPECT_TRUE(rig.serves(4, rig.seed1));
  }
}

TEST_F(UpdateTest, ARollbackToChangedMemoryIsRefused) {
  UpdateRig rig({});
  ASSERT_FALSE(rig.update(0, 2));
  const int guilty = rig.world.size() - 1;
  if (rig.world.rank() == guilty) {
    const auto pin = rig.engine->store().pin(1, Deadline::after(1));
    pin.slot().data[rig.plan.ranks[rig.tp_rank()].shards[1].destination_offset + 5] ^= std::byte{4};
  }
  const auto error = rig.rollback(1);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::mismatch);
  EXPECT_EQ(error->origin().rank, guilty);
  EXPECT_TRUE(rig.serves(2, rig.seed2));
  ASSERT_FALSE(rig.update(1, 3));
}

TEST_F(UpdateTest, InPlaceCannotRollBack) {
  UpdateRig rig({.commit = CommitMode::in_place});
  ASSERT_FALSE(rig.update(0, 2));
  const auto error = rig.rollback(1);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_THAT(error->hint(), HasSubstr("in-place"));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(UpdateTest, GroupsThatDoNotAgreeAreNotFormed) {
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const auto tp = static_cast<std::uint64_t>(world.size()) - 1;
  // One rank has another idea of the model.
  const bool odd = world.rank() == world.size() - 1;
  const auto plan = make_plan(testing_harness::small_model(odd ? Family::qwen2 : Family::llama), tp, 1);
  const auto form = [&](const GroupOptions& options) -> std::optional<Error> {
    try {
      if (world.rank() == 0) {
        Trainer trainer(plan);
        trainer.load(testing_harness::RandomWeights(plan.model, 1), 1);
        trainer.init_parameter_update_group(world, options, 1);
      } else {
        Engine engine(plan, static_cast<std::size_t>(world.rank()) - 1, CommitMode::swap, MemoryKind::host);
        engine.init_parameter_update_group(world, options);
      }
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  };
  auto error = form({.tp = tp});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_THAT(error->what(), HasSubstr("parameter"));
  EXPECT_EQ(error->origin().rank, world.size() - 1);
  error = form({.tp = tp + 1});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::config);
  EXPECT_THAT(error->hint(), HasSubstr(fmt::format("mpirun -n {}", tp + 2)));
}

/// Trainers and layouts that a world of this size has engine ranks for.
struct Trainers {
  std::uint64_t count;
  LayoutKind layout;
};
std::vector<Trainers> several_trainers() {
  std::vector<Trainers> result;
  const auto cuts = possible_tp(testing_harness::small_model());
  const auto can_cut = [&](std::uint64_t tp) { return std::ranges::find(cuts, tp) != cuts.end(); };
  for (const std::uint64_t count : {2, 3, 5}) {
    const auto world = static_cast<std::uint64_t>(testing_harness::world_size());
    if (world <= count || !can_cut(world - count)) continue;
    for (const auto layout : {LayoutKind::whole, LayoutKind::fsdp, LayoutKind::tp, LayoutKind::custom}) {
      if (layout != LayoutKind::tp || can_cut(count)) result.push_back({count, layout});
    }
  }
  return result;
}

TEST_F(UpdateTest, SeveralTrainerRanksPublishTogether) {
  for (const auto& [count, layout] : several_trainers()) {
    for (const char* transport : {"mpi", "direct"}) {
      UpdateRig rig({.transport = transport, .trainers = count, .layout = layout});
      UpdateResult result;
      ASSERT_FALSE(rig.update(0, 2, &result));
      EXPECT_TRUE(rig.serves(2, rig.seed2));
      std::vector<Digest> digests;
      for (std::size_t p = 0; p < rig.plan.model.parameters.size(); ++p)
        digests.push_back(digest_bytes(rig.seed2.bytes(p), 0));
      if (rig.caller()) {
        EXPECT_EQ(result.digest, digest_of_model(rig.plan.model, digests));
      }
      if (rig.trainer) {
        EXPECT_EQ(result.egress_bytes, rig.plan.egress_bytes_of(static_cast<std::size_t>(rig.world.rank())));
      }
      UpdateResult again;
      ASSERT_FALSE(rig.update(0, 2, &again));
      EXPECT_EQ(again.no_op, rig.caller());
      EXPECT_TRUE(rig.update(1, 2)) << "other weights as a version that is there";
      ASSERT_FALSE(rig.update(1, 3));
      EXPECT_TRUE(rig.serves(3, rig.seed1));
      ASSERT_FALSE(rig.rollback(2));
      EXPECT_TRUE(rig.serves(2, rig.seed2));
      ASSERT_FALSE(rig.update(0, 2, &again));
      EXPECT_EQ(again.no_op, rig.caller());
    }
  }
}

TEST_F(UpdateTest, SeveralTrainerRanksPublishParameterByParameter) {
  for (const auto& [count, layout] : several_trainers()) {
    UpdateRig rig({.transport = "direct", .trainers = count, .layout = layout});
    for (const auto& rule : rig.plan.model.parameters) {
      EXPECT_TRUE(rig.serves(1, rig.seed1));
      ASSERT_FALSE(rig.update_parameter(rule.info));
    }
    EXPECT_TRUE(rig.serves(2, rig.seed2));
  }
}

TEST_F(UpdateTest, TrainerRanksThatDoNotAskForTheSameAreNamed) {
  for (const auto& [count, layout] : several_trainers()) {
    UpdateRig rig({.transport = "direct", .trainers = count, .layout = layout});
    const auto error = rig.together([&] {
      if (rig.trainer) {
        rig.trainer->update_weights(0, rig.world.rank() == 1 ? 3 : 2);
      } else {
        rig.engine->update_weights().throw_if_refused();
      }
    });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ExitCode::config);
    EXPECT_THAT(error->what(), HasSubstr("of version 2 on top of 1 from its source 0, but trainer rank 1 publishes"));
    EXPECT_TRUE(rig.serves(1, rig.seed1));
    ASSERT_FALSE(rig.update(0, 2));
    EXPECT_TRUE(rig.serves(2, rig.seed2));
  }
}

TEST_F(UpdateTest, ATrainerRankThatDoesNotPublishIsNamedAndNothingHasChanged) {
  const auto several = several_trainers();
  if (several.empty()) GTEST_SKIP() << "needs two trainer ranks";
  const auto& [count, layout] = several.front();
  UpdateRig rig({.timeout_s = 2, .trainers = count, .layout = layout});
  std::string message;
  rig.together([&] {
    if (!rig.trainer || rig.world.rank() == 1) return;
    try {
      rig.trainer->update_weights(0, 2);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::busy);
      message = error.what();
    }
  });
  if (rig.world.rank() == 0) {
    EXPECT_THAT(message, HasSubstr("rank"));
  }
  if (rig.world.rank() == 2 && count > 2) {
    EXPECT_THAT(message, HasSubstr("trainer rank 0 has withdrawn its offer"));
  }
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST_F(UpdateTest, AFailureOfAnyTrainerRankIsEverybodysError) {
  using testing_harness::Fault;
  for (const auto& [count, layout] : several_trainers()) {
    for (const char* transport : {"mpi", "direct"}) {
      for (const auto kind : {Fault::Kind::throw_before, Fault::Kind::no_memory, Fault::Kind::throw_after}) {
        Fault fault;
        UpdateRig rig({.transport = transport, .trainers = count, .layout = layout}, testing_harness::injecting(fault));
        fault.kind = kind;
        fault.ranks = {static_cast<int>(count) - 1};
        const auto error = rig.update(0, 2);
        ASSERT_TRUE(error);
        EXPECT_EQ(error->origin().rank, static_cast<int>(count) - 1);
        EXPECT_TRUE(rig.serves(1, rig.seed1));
        fault = {};
        ASSERT_FALSE(rig.update(0, 2));
        EXPECT_TRUE(rig.serves(2, rig.seed2));
      }
    }
  }
}

}  // namespace
}  // namespace weightcast
