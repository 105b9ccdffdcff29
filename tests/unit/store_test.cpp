// The parameter store: what is served, who may write where, and who waits for whom.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/store/parameter_store.hpp"

namespace weightcast {
namespace {

using harness::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

Deadline long_enough() {
  return Deadline::after(60);
}
Deadline passed() {
  return Deadline::after(-1);
}

class Store : public testing::Test {
 protected:
  Store() {
    plan.slot_bytes = 4096;
    plan.ranks.resize(1);
  }
  /// Fills the staged slot with the version's number.
  static void fill(ParameterStore& store, std::size_t slot, std::uint64_t version) {
    std::ranges::fill(store.slots()[slot].bytes(), static_cast<std::byte>(version));
  }
  static void update(ParameterStore& store, std::uint64_t version) {
    const auto slot = store.stage(long_enough());
    fill(store, slot, version);
    store.publish({version, Digest{version, 1}});
  }
  static bool holds(const ParameterStore::Pin& pin) {
    return std::ranges::all_of(pin.slot().bytes(),
                               [&](std::byte b) { return b == static_cast<std::byte>(pin.version().id); });
  }

  TransferPlan plan;
};

TEST_F(Store, HasTwoZeroedSlotsOrOne) {
  const ParameterStore swap(plan, CommitMode::swap, MemoryKind::host),
      in_place(plan, CommitMode::in_place, MemoryKind::host);
  ASSERT_EQ(swap.slots().size(), 2u);
  ASSERT_EQ(in_place.slots().size(), 1u);
  EXPECT_NE(swap.slots()[0].data, swap.slots()[1].data);
  for (const auto& slot : {swap.slots()[0], swap.slots()[1], in_place.slots()[0]}) {
    EXPECT_EQ(slot.size_bytes, 4096u);
    EXPECT_TRUE(std::ranges::all_of(slot.bytes(), [](std::byte b) { return b == std::byte{0}; }));
  }
  EXPECT_EQ(name(swap.mode()), "swap");
  EXPECT_EQ(name(in_place.mode()), "in-place");
}

TEST_F(Store, ServesNothingBeforeTheFirstPublish) {
  for (const auto mode : {CommitMode::swap, CommitMode::in_place}) {
    ParameterStore store(plan, mode, MemoryKind::host);
    const auto refused = [&] {
      EXPECT_EQ(store.served(), std::nullopt);
      const auto error = error_of([&] { store.pin(); });
      EXPECT_EQ(error.code(), ExitCode::busy);
      return std::string(error.what());
    };
    EXPECT_THAT(refused(), HasSubstr("no version"));
    fill(store, store.stage(long_enough()), 1);
    refused();
    store.drop();
    refused();
    update(store, 1);
    EXPECT_EQ(store.served(), 1u);
    EXPECT_FALSE(store.dirty());
    EXPECT_TRUE(holds(store.pin()));
  }
}

TEST_F(Store, AVersionIsPublishedWithItsDigest) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 7);
  EXPECT_EQ(store.pin().version().id, 7u);
  EXPECT_EQ(store.pin().version().digest, (Digest{7, 1}));
}

TEST_F(Store, ReadersStayOnTheirVersionWhileTheNextIsStaged) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  const auto old = store.pin();
  const auto slot = store.stage(long_enough());
  EXPECT_NE(store.slots()[slot].data, old.slot().data);
  fill(store, slot, 2);
  EXPECT_TRUE(holds(old));
  EXPECT_EQ(store.pin().version().id, 1u) << "what is staged is not served";
  store.publish({2, {}});
  EXPECT_EQ(old.version().id, 1u);
  EXPECT_TRUE(holds(old));
  const auto next = store.pin();
  EXPECT_EQ(next.version().id, 2u);
  EXPECT_TRUE(holds(next));
}

TEST_F(Store, DropLeavesTheServedVersionAlone) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  const auto slot = store.stage(long_enough());
  fill(store, slot, 2);
  store.drop();
  EXPECT_FALSE(store.dirty());
  EXPECT_EQ(store.served(), 1u);
  EXPECT_TRUE(holds(store.pin()));
  EXPECT_EQ(store.stage(long_enough()), slot) << "the same spare slot again";
  store.publish({3, {}});
  EXPECT_EQ(store.served(), 3u);
  store.drop();  // of nothing: nothing happens
  EXPECT_EQ(store.served(), 3u);
}

TEST_F(Store, StageAndPublishInTurn) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  EXPECT_EQ(error_of([&] { store.publish({1, {}}); }).code(), ExitCode::internal);
  store.stage(long_enough());
  EXPECT_EQ(error_of([&] { store.stage(long_enough()); }).code(), ExitCode::internal);
  store.publish({1, {}});
  EXPECT_EQ(error_of([&] { store.publish({2, {}}); }).code(), ExitCode::internal);
  EXPECT_EQ(store.served(), 1u);
}

TEST_F(Store, StageDoesNotOverwriteWhatIsRead) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  std::optional<ParameterStore::Pin> first(store.pin()), second(store.pin());
  update(store, 2);  // the other slot
  for (const std::string count : {"2 requests", "1 requests"}) {
    const auto error = error_of([&] { store.stage(passed()); });
    EXPECT_EQ(error.code(), ExitCode::deadline);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("version 1 "), HasSubstr(count)));
    EXPECT_THAT(error.hint(), HasSubstr("--timeout"));
    EXPECT_EQ(store.served(), 2u);
    EXPECT_TRUE(holds(*first));
    second.reset();
  }
  first.reset();
  update(store, 3);
  EXPECT_EQ(store.served(), 3u);
}

TEST_F(Store, APinThatWasMovedCountsOnce) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  {
    auto a = store.pin();
    const auto other = store.pin();
    {
      const ParameterStore::Pin b(std::move(a));
      EXPECT_EQ(b.version().id, 1u);
    }
    update(store, 2);
    EXPECT_EQ(error_of([&] { store.stage(passed()); }).code(), ExitCode::deadline) << "`other` still reads";
  }
  update(store, 3);
}

TEST_F(Store, StagePassesWhenAnotherThreadReleases) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  std::optional<ParameterStore::Pin> pin(store.pin());
  update(store, 2);
  std::atomic<bool> released = false, staged_too_early = false;
  std::thread updater([&] {
    store.stage(long_enough());
    staged_too_early = !released;
    store.publish({3, {}});
  });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();  // most often the updater waits by now
  released = true;
  pin.reset();
  updater.join();
  EXPECT_FALSE(staged_too_early);
  EXPECT_EQ(store.served(), 3u);
}

TEST_F(Store, InPlaceIsDirtyFromStageToPublish) {
  ParameterStore store(plan, CommitMode::in_place, MemoryKind::host);
  update(store, 1);
  const auto refused = [&] {
    EXPECT_TRUE(store.dirty());
    EXPECT_EQ(store.served(), std::nullopt);
    const auto error = error_of([&] { store.pin(); });
    EXPECT_EQ(error.code(), ExitCode::busy);
    EXPECT_THAT(error.what(), HasSubstr("dirty"));
    EXPECT_THAT(error.hint(), HasSubstr("full update"));
  };
  EXPECT_EQ(store.stage(long_enough()), 0u);
  refused();
  fill(store, 0, 2);
  store.drop();
  refused();  // the old version is gone
  EXPECT_EQ(store.stage(long_enough()), 0u);
  refused();
  fill(store, 0, 3);
  store.publish({3, {}});
  EXPECT_FALSE(store.dirty());
  EXPECT_EQ(store.served(), 3u);
  EXPECT_TRUE(holds(store.pin()));
}

TEST_F(Store, InPlaceThatNeverBeganIsNotDirty) {
  ParameterStore store(plan, CommitMode::in_place, MemoryKind::host);
  update(store, 1);
  const auto pin = store.pin();
  const auto error = error_of([&] { store.stage(passed()); });
  EXPECT_EQ(error.code(), ExitCode::deadline);
  EXPECT_THAT(error.what(), HasSubstr("version 1 "));
  EXPECT_FALSE(store.dirty());
  EXPECT_EQ(store.served(), 1u);
  EXPECT_TRUE(holds(store.pin()));
}

TEST_F(Store, InPlaceLetsNobodyInWhileItWaitsForReaders) {
  ParameterStore store(plan, CommitMode::in_place, MemoryKind::host);
  update(store, 1);
  std::optional<ParameterStore::Pin> pin(store.pin());
  std::thread updater([&] { update(store, 2); });
  while (!store.dirty()) std::this_thread::yield();
  EXPECT_EQ(error_of([&] { store.pin(); }).code(), ExitCode::busy);
  EXPECT_TRUE(holds(*pin));
  pin.reset();
  updater.join();
  EXPECT_EQ(store.served(), 2u);
}

TEST_F(Store, ReadersNeverSeeAMixture) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  std::atomic<bool> stop = false;
  std::atomic<int> mixed = 0, backwards = 0;
  std::atomic<std::uint64_t> reads = 0;
  std::vector<std::thread> readers;
  for (int r = 0; r < 3; ++r) {
    readers.emplace_back([&] {
      for (std::uint64_t last = 0; !stop;) {
        const auto pin = store.pin();
        if (pin.version().id < last) ++backwards;
        last = pin.version().id;
        if (!holds(pin)) ++mixed;
        std::this_thread::yield();
        if (!holds(pin) || pin.version().id != last) ++mixed;
        ++reads;
      }
    });
  }
  for (std::uint64_t version = 2; version <= 200; ++version) {
    update(store, version);
    for (const auto until = reads.load() + 1; reads < until;) std::this_thread::yield();
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(mixed, 0);
  EXPECT_EQ(backwards, 0);
  EXPECT_EQ(store.served(), 200u);
}

TEST_F(Store, AVersionIsPinnedById) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  update(store, 2);
  EXPECT_EQ(store.pin(1, passed()).version().id, 1u) << "the spare slot still holds it";
  EXPECT_TRUE(holds(store.pin(1, passed())));
  EXPECT_TRUE(holds(store.pin(2, passed())));
  store.reserve(long_enough());
  EXPECT_TRUE(holds(store.pin(1, passed()))) << "reserved, but not overwritten yet";
  store.overwrite();
  const auto error = error_of([&] { store.pin(1, passed()); });
  EXPECT_EQ(error.code(), ExitCode::deadline);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("version 1"), HasSubstr("[2]")));
  store.drop();
  EXPECT_EQ(error_of([&] { store.pin(1, passed()); }).code(), ExitCode::deadline) << "half-written content is gone";
}

TEST_F(Store, APinByIdWaitsForTheCommit) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  std::thread updater([&] {
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    update(store, 2);
  });
  const auto pin = store.pin(2, long_enough());
  EXPECT_EQ(pin.version().id, 2u);
  EXPECT_TRUE(holds(pin));
  updater.join();
}

TEST_F(Store, WhoIsWaitedForIsNamed) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  const auto a = store.pin("probe request 17"), b = store.pin(1, passed(), "probe request 18");
  update(store, 2);
  const auto error = error_of([&] { store.stage(passed()); });
  EXPECT_THAT(error.what(), AllOf(HasSubstr("version 1 "), HasSubstr("probe request 17, probe request 18")));
}

TEST_F(Store, RollsBackToTheSpareSlot) {
  ParameterStore store(plan, CommitMode::swap, MemoryKind::host);
  update(store, 1);
  EXPECT_EQ(error_of([&] { store.roll_back(2); }).code(), ExitCode::internal);
  update(store, 2);
  ASSERT_TRUE(store.slot_of(1));
  EXPECT_NE(store.slot_of(1), store.slot_of(2));
  store.roll_back(1);
  EXPECT_EQ(store.served(), 1u);
  EXPECT_EQ(store.pin().version().digest, (Digest{1, 1}));
  EXPECT_TRUE(holds(store.pin()));
  const auto slot = store.slot_of(2);
  EXPECT_EQ(store.stage(long_enough()), slot) << "what was rolled back is overwritten next";
  EXPECT_EQ(error_of([&] { store.roll_back(1); }).code(), ExitCode::internal) << "an update is under way";
  store.publish({3, {}});
  EXPECT_FALSE(store.slot_of(2));
}

TEST_F(Store, InPlaceIsAsGoodAsBeforeWhenNothingWasOverwritten) {
  ParameterStore store(plan, CommitMode::in_place, MemoryKind::host);
  update(store, 1);
  store.reserve(long_enough());
  EXPECT_TRUE(store.dirty());
  EXPECT_TRUE(holds(store.pin(1, passed()))) << "for requests that began before, on another rank";
  store.drop();
  EXPECT_FALSE(store.dirty());
  EXPECT_TRUE(holds(store.pin()));
}

TEST_F(Store, SaysWhatItHasNoMemoryFor) {
  plan.slot_bytes = std::uint64_t{1} << 60;
  const auto error = error_of([&] { ParameterStore store(plan, CommitMode::swap, MemoryKind::host); });
  EXPECT_EQ(error.code(), ExitCode::unavailable);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("slot 0 of an engine rank"), HasSubstr("1152921504606846976")));
  EXPECT_THAT(error.hint(), HasSubstr("in-place"));
}

}  // namespace
}  // namespace weightcast
