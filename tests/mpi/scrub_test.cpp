// Scrubs: every byte that engines serve against what was committed, beside everything else that goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "harness/error_of.hpp"
#include "harness/faulty_transport.hpp"
#include "harness/update_rig.hpp"

namespace weightcast {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_harness::Fault;
using testing_harness::UpdateRig;

constexpr int flips = 1000;

/// Lets a test look at an engine rank in the middle of STAGE: before bytes move, and when all have landed.
class WatchedTransport final : public Transport {
 public:
  WatchedTransport(std::unique_ptr<Transport> inner, const std::function<void()>& look)
      : inner_(std::move(inner)), look_(&look) {}
  std::string_view name() const noexcept override { return inner_->name(); }
  std::optional<std::string> probe(const Peers& peers, int rank, int other) const override {
    return inner_->probe(peers, rank, other);
  }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    inner_->attach(peers, plan, endpoints, deadline);
  }
  void run(const Batch& batch, Deadline deadline) override {
    if (*look_) (*look_)();
    inner_->run(batch, deadline);
    if (*look_) (*look_)();
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }

 private:
  std::unique_ptr<Transport> inner_;
  const std::function<void()>* look_;
};

class ScrubTest : public testing::TestWithParam<MemoryKind> {
 protected:
  void SetUp() override {
    if (testing_harness::world_size() < 2) GTEST_SKIP() << "needs an engine rank";
    if (const auto reason = testing_harness::why_not(GetParam(), "direct"); !reason.empty()) GTEST_SKIP() << reason;
  }
  UpdateRig::Settings settings(std::uint64_t dp = 1) const {
    return {.transport = "direct", .dp = dp, .memory = GetParam(), .scrub = true};
  }
  /// Of the replicas that this world can have.
  static std::vector<std::uint64_t> replicas() {
    return testing_harness::world_size() % 2 == 1 ? std::vector<std::uint64_t>{1, 2} : std::vector<std::uint64_t>{1};
  }
  /// All engines: the error that any of them met, on all ranks.
  static std::optional<Error> scrub(UpdateRig& rig, std::uint64_t version) {
    return rig.together([&] {
      if (!rig.engine) return;
      const auto scrub = rig.engine->scrub();
      EXPECT_EQ(scrub.version, version);
      EXPECT_TRUE(scrub.proven);
    });
  }
  /// What this rank serves, by itself.
  static bool scrub_here(Engine& engine) {
    const auto pin = engine.store().pin();
    return engine.group().scrub(pin, Deadline::after(20));
  }
};

TEST_P(ScrubTest, WhatWasLoadedCommittedOrRolledBackToPasses) {
  for (const auto dp : replicas()) {
    UpdateRig rig(settings(dp));
    ASSERT_FALSE(scrub(rig, 1));
    for (std::uint64_t version = 2; version <= 5; ++version) {
      ASSERT_FALSE(rig.update(version % 2, version));
      ASSERT_FALSE(scrub(rig, version));
    }
    ASSERT_FALSE(rig.rollback(4));
    ASSERT_FALSE(scrub(rig, 4));
    if (rig.engine && rig.caller()) {
      for (const auto* times : rig.engine->scrub_layers()) EXPECT_EQ(times->calls(), 6u) << times->layer();
    }
  }
}

TEST_P(ScrubTest, ParameterByParameterToo) {
  UpdateRig rig(settings());
  for (const auto& rule : rig.plan.model.parameters) {
    ASSERT_FALSE(scrub(rig, 1));
    ASSERT_FALSE(rig.update_parameter(rule.info));
  }
  ASSERT_FALSE(scrub(rig, 2));
}

TEST_P(ScrubTest, OneFlippedBitAnywhereIsFoundAndNamed) {
  int found = 0, tried = 0;
  for (const auto dp : replicas()) {
    UpdateRig rig(settings(dp));
    ASSERT_FALSE(rig.update(0, 2));
    std::mt19937_64 random(11);
    const auto roster = rig.plan.roster();
    for (int i = 0; i < flips; ++i, ++tried) {
      const int guilty = 1 + static_cast<int>(random() % (rig.plan.tp * dp));
      const auto& rank = rig.plan.ranks[roster.tp_rank(guilty)];
      std::size_t parameter = 0;
      auto byte = random() % rank.received_bytes;
      for (; byte >= rank.shards[parameter].size_bytes(); ++parameter) byte -= rank.shards[parameter].size_bytes();
      const auto bit = static_cast<int>(random() % 8);
      const auto flip = [&] {
        if (rig.world.rank() != guilty) return;
        // By version: the thread that serves may be a moment behind what all ranks agreed on.
        const auto pin = rig.engine->store().pin(2, rig.deadline());
        testing_harness::flip_bit(pin.slot(), rank.shards[parameter].destination_offset + byte, bit);
      };
      flip();
      const auto error = scrub(rig, 2);
      flip();
      const auto& name = rig.plan.model.parameters[parameter].info.name;
      ASSERT_TRUE(error) << "flip " << i << " went unnoticed, on rank " << guilty << " in byte " << byte << " of "
                         << name;
      ASSERT_EQ(error->code(), ExitCode::mismatch);
      ASSERT_EQ(error->origin().rank, guilty);
      ASSERT_EQ(error->origin().stage, "scrub");
      ASSERT_THAT(error->what(),
                  AllOf(HasSubstr(name + " of version 2 is not what was committed"), HasSubstr("digest")));
      ASSERT_THAT(error->hint(), HasSubstr("publish a whole version"));
      ++found;
    }
    EXPECT_FALSE(scrub(rig, 2)) << "all was put right";
    EXPECT_TRUE(rig.serves(2, rig.seed2));
    ASSERT_FALSE(rig.update(1, 3));
    EXPECT_FALSE(scrub(rig, 3));
  }
  if (testing_harness::world_rank() == 0)
    std::printf("%d of %d bit flips in served %s memory found and named\n", found, tried,
                std::string(name(GetParam())).c_str());
}

TEST_P(ScrubTest, TheFirstOfSeveralIsNamedAndAWholeVersionHelps) {
  UpdateRig rig(settings());
  const auto& parameters = rig.plan.model.parameters;
  if (rig.engine) {
    const auto pin = rig.engine->store().pin();
    for (std::size_t p = 2; p < parameters.size(); ++p)
      testing_harness::flip_bit(pin.slot(), rig.plan.ranks[rig.tp_rank()].shards[p].destination_offset, 0);
  }
  for (int again = 0; again < 2; ++again) {
    const auto error = scrub(rig, 1);
    ASSERT_TRUE(error);
    EXPECT_THAT(error->what(), HasSubstr(parameters[2].info.name + " of version 1"));
  }
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_FALSE(scrub(rig, 2));
  EXPECT_EQ(rig.rollback(1)->code(), ExitCode::mismatch) << "the damage is still there";
  EXPECT_FALSE(scrub(rig, 2));
}

TEST_P(ScrubTest, InTheMiddleOfAnUpdateItDisturbsNothing) {
  std::function<void()> look;
  Fault fault;
  const auto inject = testing_harness::injecting(fault);
  UpdateRig rig(settings(), [&](std::unique_ptr<Transport> inner) {
    return std::make_unique<WatchedTransport>(inject(std::move(inner)), look);
  });
  std::atomic<int> looks{0};
  if (rig.engine) {
    look = [&] {
      EXPECT_TRUE(scrub_here(*rig.engine));
      ++looks;
    };
  }
  for (std::uint64_t version = 2; version <= 5; ++version) {
    ASSERT_FALSE(rig.update(version % 2, version)) << "the digests of the update are its own";
    ASSERT_FALSE(scrub(rig, version));
  }
  EXPECT_EQ(looks, rig.engine ? 8 : 0);
  const int last = rig.world.size() - 1;
  for (const auto kind :
       {Fault::Kind::bit_flip, Fault::Kind::throw_before, Fault::Kind::throw_midway, Fault::Kind::throw_after}) {
    fault = {.kind = kind, .ranks = {last}};
    ASSERT_TRUE(rig.update(0, 6));
    fault = {};
    ASSERT_FALSE(scrub(rig, 5)) << "after an abort";
  }
  ASSERT_FALSE(rig.update(0, 6));
  ASSERT_FALSE(scrub(rig, 6));
  look = {};
}

TEST_P(ScrubTest, ReadersAndUpdatesGoOnBesideIt) {
  for (const auto dp : replicas()) {
    UpdateRig rig(settings(dp));
    std::atomic<std::uint64_t> reads{0}, scrubs{0};
    std::vector<std::jthread> threads;
    const auto repeat = [&](std::atomic<std::uint64_t>& count, auto call) {
      threads.emplace_back([&count, call](const std::stop_token& stop) {
        try {
          for (; !stop.stop_requested(); ++count) call();
        } catch (const Error& error) {
          ADD_FAILURE() << error.what();
        }
      });
    };
    if (rig.engine && rig.caller()) {
      for (int i = 0; i < 2; ++i) {
        repeat(reads, [&] { rig.engine->probe(); });
        repeat(scrubs, [&] { EXPECT_TRUE(rig.engine->scrub().proven); });
      }
    }
    for (std::uint64_t version = 2; version <= 30; ++version) ASSERT_FALSE(rig.update(version % 2, version));
    if (rig.engine && rig.caller()) {
      const auto limit = Deadline::after(15);
      const auto reads_before = reads.load(), scrubs_before = scrubs.load();
      while ((reads < reads_before + 10 || scrubs < scrubs_before + 10) && !limit.passed()) std::this_thread::yield();
      EXPECT_GE(reads, reads_before + 10);
      EXPECT_GE(scrubs, scrubs_before + 10);
    }
    threads.clear();
    EXPECT_TRUE(rig.serves(30, rig.seed2));
  }
}

TEST_P(ScrubTest, NothingIsScrubbedWhileAnOnlySlotIsDirty) {
  auto in_place = settings();
  in_place.commit = CommitMode::in_place;
  Fault fault;
  UpdateRig rig(in_place, testing_harness::injecting(fault));
  ASSERT_FALSE(scrub(rig, 1));
  fault = {.kind = Fault::Kind::throw_after, .ranks = {1}};
  ASSERT_TRUE(rig.update(0, 2));
  fault = {};
  const auto error = scrub(rig, 1);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::busy);
  EXPECT_THAT(error->what(), HasSubstr("dirty"));
  ASSERT_FALSE(rig.update(0, 2));
  ASSERT_FALSE(scrub(rig, 2));
}

TEST_P(ScrubTest, WithoutProofThereIsNothingToCompareWith) {
  auto unproven = settings();
  unproven.proof = Proof::none;
  UpdateRig rig(unproven);
  ASSERT_FALSE(rig.update(0, 2));
  if (!rig.engine || !rig.caller()) return;
  EXPECT_FALSE(rig.engine->scrub().proven);
  EXPECT_EQ(rig.engine->scrub().version, 2u);
}

TEST_P(ScrubTest, AGroupThatWasNotFormedForItRefuses) {
  auto without = settings();
  without.scrub = false;
  UpdateRig rig(without);
  if (rig.engine) {
    const auto error = harness::error_of([&] { scrub_here(*rig.engine); });
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_THAT(error.what(), HasSubstr("not formed for it"));
    const auto request = harness::error_of([&] { rig.engine->scrub(); });
    EXPECT_EQ(request.code(), ExitCode::config);
    EXPECT_THAT(request.what(), HasSubstr(rig.caller() ? "not formed for it" : "scrub() on tp rank"));
  }
  rig.world.barrier(rig.deadline());
  ASSERT_FALSE(rig.update(0, 2)) << "nobody was disturbed";
}

INSTANTIATE_TEST_SUITE_P(Host, ScrubTest, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Gpu, ScrubTest, testing::Values(MemoryKind::cuda));

}  // namespace
}  // namespace weightcast
