#include "weightcast/plan/roster.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

TEST(Roster, EveryRankHasOnePlace) {
  for (const std::uint64_t trainers : {1, 2, 3}) {
    for (const std::uint64_t tp : {1, 2, 5}) {
      for (const std::uint64_t dp : {1, 2, 4}) {
        const Roster roster{trainers, tp, dp};
        std::uint64_t engines = 0;
        for (int rank = 0; rank < static_cast<int>(roster.rank_count()); ++rank) {
          EXPECT_EQ(roster.role(rank), roster.trainer(rank) ? "trainer" : "engine");
          if (roster.trainer(rank)) continue;
          ++engines;
          EXPECT_EQ(roster.engine_rank(roster.replica(rank), roster.tp_rank(rank)), rank);
          EXPECT_LT(roster.tp_rank(rank), tp);
          EXPECT_EQ(roster.holders(roster.tp_rank(rank)).at(roster.replica(rank)), rank);
        }
        EXPECT_EQ(engines, roster.engine_count());
        EXPECT_NO_THROW(roster.check_world(static_cast<int>(roster.rank_count())));
        EXPECT_THROW(roster.check_world(static_cast<int>(roster.rank_count()) + 1), Error);
      }
    }
  }
  EXPECT_THAT((Roster{.tp = 2, .dp = 3}.holders(1)), testing::ElementsAre(2, 4, 6));
}

TEST(Roster, IsFormedFromTheWorldOrSaysHowToStartIt) {
  EXPECT_EQ(form_roster({}, 1, 4), (Roster{1, 3, 1}));
  EXPECT_EQ(form_roster({}, 2, 5), (Roster{1, 2, 2}));
  EXPECT_EQ(form_roster(2, 2, 5), (Roster{1, 2, 2}));
  EXPECT_EQ(form_roster({}, 2, 7, 3), (Roster{3, 2, 2}));
  EXPECT_EQ(form_roster(2, 1, 6, 4), (Roster{4, 2, 1}));
  const auto refused = [](std::optional<std::uint64_t> tp, std::uint64_t dp, int ranks, const std::string& what,
                          const std::string& hint, std::uint64_t trainers = 1) {
    const auto error = harness::error_of([&] { form_roster(tp, dp, ranks, trainers); });
    EXPECT_EQ(error.code(), ExitCode::config) << ranks;
    EXPECT_EQ(error.what(), what);
    EXPECT_EQ(error.hint(), hint);
  };
  refused(3, 1, 3, "3 ranks are not 1 trainer + 1 x tp 3 engine ranks",
          "start it with mpirun -n 4, or change --tp and --dp");
  refused({}, 2, 4, "4 ranks are not 1 trainer + 2 x tp engine ranks",
          "start it with mpirun -n 3, or change --tp and --dp");
  refused({}, 1, 1, "started as one rank alone, but this takes 1 trainer + 1 x tp engine ranks",
          "start it with mpirun in front: mpirun -n 2");
  refused(2, 2, 7, "7 ranks are not 4 trainer ranks + 2 x tp 2 engine ranks",
          "start it with mpirun -n 8, or change --trainers, --tp and --dp", 4);
  for (const int ranks : {3, 4})  // nothing is left for engines
    refused({}, 1, ranks, std::to_string(ranks) + " ranks are not 4 trainer ranks + 1 x tp engine ranks",
            "start it with mpirun -n 5, or change --trainers, --tp and --dp", 4);
  EXPECT_EQ(describe(form_roster({}, 2, 5)), "1 trainer + 2 x tp 2 engine ranks");
  EXPECT_EQ(describe(form_roster({}, 2, 6, 2)), "2 trainer ranks + 2 x tp 2 engine ranks");
  EXPECT_THROW(form_roster(std::uint64_t{1} << 63, 2, 1), Error);  // a product that wraps around
  EXPECT_THROW(form_roster(1, std::uint64_t{1} << 63, 3), Error);
}

}  // namespace
}  // namespace weightcast
