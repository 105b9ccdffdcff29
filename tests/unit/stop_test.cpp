#include "weightcast/job/stop.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

namespace weightcast {
namespace {

TEST(StopTest, a_signal_ends_the_process_unless_it_is_noted) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) {
    EXPECT_EXIT(
        {
          catch_signals();
          std::raise(number);
        },
        testing::KilledBySignal(number), "");
  }
}

TEST(StopTest, a_noted_signal_is_an_error_where_it_is_looked_for) {
  catch_signals();
  note_signals();
  EXPECT_EQ(noted_signal(), 0);
  EXPECT_NO_THROW(stop_if_asked());
  std::raise(SIGUSR1);
  EXPECT_EQ(noted_signal(), SIGUSR1);
  try {
    stop_if_asked();
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::deadline);
    EXPECT_STREQ(error.what(), "stopped by SIGUSR1 while it read weights");
  }
  obey_signals();
  note_signals();
  std::raise(SIGTERM);
  EXPECT_EXIT(obey_signals(), testing::KilledBySignal(SIGTERM), "");
}

TEST(StopTest, a_full_pipe_does_not_keep_a_rank_from_ending) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto print_into_a_full_pipe = [] {
    catch_signals();
    note_signals();
    int ends[2];
    if (::pipe2(ends, O_NONBLOCK) != 0 || ::dup2(ends[1], STDOUT_FILENO) < 0) ::_exit(10);
    if (!ready_to_print()) ::_exit(11);
    const char block[4096] = {};
    while (::write(STDOUT_FILENO, block, sizeof(block)) > 0) {
    }
    std::raise(SIGTERM);
    ::_exit(ready_to_print() ? 12 : 0);
  };
  EXPECT_EXIT(print_into_a_full_pipe(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace weightcast
