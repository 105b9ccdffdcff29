// Engines under full read load through many updates: each answer is of one committed version, none is of an older one
// than was served when it was asked for, and neither memory nor descriptors grow. WEIGHTCAST_SOAK_UPDATES sets how
// many.
#include <gtest/gtest.h>

#include <cstdlib>

#include "harness/holdings.hpp"
#include "harness/update_rig.hpp"
#include "weightcast/job/readers.hpp"
#include "weightcast/model/model_config.hpp"

namespace weightcast {
namespace {

using testing_harness::Holdings;
using testing_harness::UpdateRig;

std::uint64_t updates_wanted() {
  const char* const text = std::getenv("WEIGHTCAST_SOAK_UPDATES");
  return text == nullptr ? 300 : std::strtoull(text, nullptr, 10);
}

class ServingSoak : public testing::TestWithParam<MemoryKind> {};

TEST_P(ServingSoak, NoAnswerIsMixedOrStale) {
  const int ranks = testing_harness::world_size();
  if (ranks < 2 || ranks % 2 == 0) GTEST_SKIP() << "runs on two engines";
  if (GetParam() == MemoryKind::cuda && gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
  const auto count = updates_wanted();
  UpdateRig rig({.transport = "direct",
                 .dp = 2,
                 .timeout_s = 60,
                 .memory = GetParam(),
                 .model = build_model(load_model_config("tiny"))});
  std::optional<Readers> readers;
  if (rig.engine && rig.caller()) readers.emplace(*rig.engine, rig.plan.model, 4);
  std::uint64_t version = 1;
  const auto update_to = [&](std::uint64_t last) {
    EXPECT_FALSE(rig.together([&] {
      for (auto next = version + 1; next <= last; ++next) {
        if (rig.trainer) {
          rig.trainer->update_weights(next % 2, next);
        } else {
          readers->update_begins();
          readers->update_ended(rig.engine->update_weights(next).throw_if_refused());
        }
      }
    }));
    version = last;
  };
  update_to(1 + count / 3);  // until the lists of MPI and of the allocator have grown
  const Holdings before(GetParam());
  update_to(1 + count);
  const Holdings after(GetParam());
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(after.gpu_allocations, before.gpu_allocations);
  if (!testing_harness::sanitized) {
    EXPECT_LE(after.resident_bytes, before.resident_bytes + testing_harness::slack_bytes);
  }

  std::vector<ReportUpdate> updates(count);
  std::optional<ReadersSeen> mine;
  if (readers) mine = readers->stop();
  const auto seen = gather_readers(rig.world, mine, 4, updates, rig.deadline());
  if (rig.trainer) std::printf("%llu updates\n%s", static_cast<unsigned long long>(count), describe(seen).c_str());
  EXPECT_GE(seen.reads, 8u);
  EXPECT_EQ(seen.mixed, 0u);
  EXPECT_EQ(seen.stale, 0u);
  EXPECT_TRUE(rig.serves(version, version % 2 == 0 ? rig.seed2 : rig.seed1));
}

INSTANTIATE_TEST_SUITE_P(Host, ServingSoak, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Gpu, ServingSoak, testing::Values(MemoryKind::cuda));

}  // namespace
}  // namespace weightcast
