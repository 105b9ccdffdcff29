// Agreement: all ranks throw the same error, or none does, and nobody hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/replica_set.hpp"
#include "weightcast/comm/communicator.hpp"
#include "weightcast/comm/pulse.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

using testing::HasSubstr;

Communicator world() {
  return Communicator::duplicate(MPI_COMM_WORLD);
}

std::optional<Error> outcome(const Communicator& comm, double seconds, FunctionRef<void()> local) {
  try {
    agree(comm, "test", Deadline::after(seconds), local);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

TEST(Agree, NothingHappensWhenNobodyFails) {
  const auto comm = world();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(outcome(comm, 10, [] {}));
}

TEST(Agree, EveryRankThrowsTheGuiltyRanksError) {
  const auto comm = world();
  for (int guilty = 0; guilty < comm.size(); ++guilty) {
    const auto error = outcome(comm, 10, [&] {
      if (comm.rank() == guilty) throw Error(ExitCode::bad_data, fmt::format("broken by {}", guilty), "mend it");
    });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ExitCode::bad_data);
    EXPECT_STREQ(error->what(), fmt::format("broken by {}", guilty).c_str());
    EXPECT_EQ(error->hint(), "mend it");
    EXPECT_EQ(error->origin().rank, guilty);
    EXPECT_EQ(error->origin().stage, "test");
    EXPECT_EQ(error->reach(), Error::Reach::everybody);
  }
  EXPECT_FALSE(outcome(comm, 10, [] {}));  // and the communicator is as good as before
}

TEST(Agree, TheLowestGuiltyRankSpeaks) {
  const auto comm = world();
  const auto error = outcome(comm, 10, [&] {
    if (comm.rank() >= comm.size() / 2) fail(ExitCode::io_error, "rank {}", comm.rank());
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->origin().rank, comm.size() / 2);
}

TEST(Agree, EveryGuiltyRankIsNamedWithItsReason) {
  const auto comm = world();
  if (comm.size() < 5) GTEST_SKIP() << "needs two reasons and an innocent rank";
  auto error = outcome(comm, 10, [&] {
    if (comm.rank() == 2) fail(ExitCode::mismatch, "one bit");
    if (comm.rank() > 2) fail(ExitCode::config, "another base");
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::mismatch);
  EXPECT_EQ(error->origin().rank, 2);
  const auto message = fmt::format("rank 2: one bit; ranks 3-{}: another base", comm.size() - 1);
  EXPECT_EQ(error->what(), message);
  // Told again, it stays as it is.
  const auto first = error;
  error = outcome(comm, 10, [&] { throw Error(*first); });
  EXPECT_EQ(error->what(), message);
  EXPECT_EQ(error->origin().rank, 2);
  // What all say needs no names.
  error = outcome(comm, 10, [] { fail(ExitCode::config, "the same everywhere"); });
  EXPECT_STREQ(error->what(), "the same everywhere");
}

TEST(Agree, ACauseOutranksAWait) {
  const auto comm = world();
  const auto error = outcome(comm, 10, [&] {
    if (comm.rank() == comm.size() - 1) fail(ExitCode::mismatch, "the cause");
    fail(ExitCode::deadline, "waited in vain");
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::mismatch);
  EXPECT_EQ(error->origin().rank, comm.size() - 1);
}

TEST(Agree, ForeignExceptionsAndLongTextsTravel) {
  const auto comm = world();
  auto error = outcome(comm, 10, [&] {
    if (comm.rank() == comm.size() - 1) throw std::runtime_error(std::string(10'000, 'x'));
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::internal);
  EXPECT_THAT(error->what(), HasSubstr("xxx..."));
  error = outcome(comm, 10, [] { throw std::bad_alloc(); });
  EXPECT_EQ(error->code(), ExitCode::unavailable);
}

TEST(Agree, ASilentRankIsNamedToAllOthersBeforeTheDeadline) {
  if (testing_harness::world_size() < 3) GTEST_SKIP() << "needs a rank that is silent and two that talk of it";
  const auto comm = world();
  const int silent = comm.size() - 1;
  if (comm.rank() != silent) {
    // The last one takes no part until the others have spoken: the barrier below.
    const auto deadline = Deadline::after(1);
    std::optional<Error> error;
    try {
      agree(comm, "test", deadline, [](Deadline work) {
        for (Patience patience; !work.passed(); patience.pause()) {  // in vain
        }
        fail(ExitCode::deadline, "waited in vain");
      });
    } catch (const Error& thrown) {
      error = thrown;
    }
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ExitCode::deadline);
    EXPECT_EQ(error->origin().rank, silent);
    EXPECT_EQ(error->reach(), Error::Reach::lost);
    EXPECT_THAT(error->what(), HasSubstr(fmt::format("rank {}", silent)));
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(Pulse, ARankThatFallsSilentIsNamedWhileOthersWork) {
  if (testing_harness::world_size() < 3) GTEST_SKIP() << "needs a rank that is silent and two that are not";
  const auto comm = world();
  const int silent = comm.size() - 1;
  if (comm.rank() != silent) {
    const Pulse pulse(comm, "test", 0.3);
    const auto deadline = Deadline::after(10);  // of a long stage
    std::optional<Error> error;
    try {
      agree(
          comm, "test", deadline, [] {}, [&] { pulse.check(); });
    } catch (const Error& thrown) {
      error = thrown;
    }
    EXPECT_FALSE(deadline.passed()) << "slow is not dead, but this one is";
    ASSERT_TRUE(error);
    EXPECT_EQ(error->origin().rank, silent);
    EXPECT_EQ(error->reach(), Error::Reach::lost);
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(Pulse, NobodyIsLostWhileAllWork) {
  const auto comm = world();
  const Pulse pulse(comm, "test", 0.2);
  const auto end = Deadline::after(0.6);
  const auto work = [&] {
    for (Patience patience; !end.passed(); patience.pause()) pulse.check();
  };
  EXPECT_NO_THROW(agree(comm, "test", Deadline::after(10), work, [&] { pulse.check(); }));
}

TEST(StageClock, KnowsTheOutermostStageThatIsOverdue) {
  StageClock clock;
  EXPECT_FALSE(clock.overdue(0));
  {
    const StageClock::Note outer(&clock, "outer", Deadline::after(0)), inner(&clock, "inner", Deadline::after(100));
    EXPECT_EQ(clock.overdue(0), "outer");
    EXPECT_FALSE(clock.overdue(100));
  }
  EXPECT_FALSE(clock.overdue(0));
}

TEST(Communicator, GathersTextsOfDifferentLength) {
  const auto comm = world();
  const auto all = comm.all_gather(std::string(static_cast<std::size_t>(comm.rank()) * 7, 'a'), Deadline::after(10));
  ASSERT_EQ(all.size(), static_cast<std::size_t>(comm.size()));
  for (std::size_t r = 0; r < all.size(); ++r) EXPECT_EQ(all[r], std::string(r * 7, 'a'));
}

TEST(Communicator, PartsKnowWhetherTheHostIsCrowded) {
  const auto comm = world();
  const auto alone = Communicator::duplicate(MPI_COMM_SELF);  // one rank, and of no influence on the others
  EXPECT_FALSE(alone.crowded());
  EXPECT_EQ(comm.crowded(), available_cores() < static_cast<std::size_t>(comm.size()));
  EXPECT_EQ(comm.split(comm.rank() % 2, comm.rank(), Deadline::after(10)).crowded(), comm.crowded());
  EXPECT_EQ(comm.split_by_host(Deadline::after(10)).crowded(), comm.crowded());
}

TEST(Communicator, AWaitEndsAtItsDeadline) {
  if (testing_harness::world_size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto comm = world();
  if (comm.rank() == 0) {
    try {
      comm.barrier(Deadline::after(0.2));
      FAIL() << "the barrier did not wait for anybody";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::deadline);
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

}  // namespace
}  // namespace weightcast
