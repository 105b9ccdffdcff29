// Where progress is drawn, how wide it is, and what stands there.
#include "output/terminal.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <tuple>

#include "harness/folder_test.hpp"
#include "output/progress.hpp"
#include "weightcast/core/unique_handle.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(TerminalRules, OnlyATerminalThatIsNotDumbIsDrawnOn) {
  for (const char* term : {"xterm-256color", "linux", "vt100", "screen"}) EXPECT_TRUE(can_redraw(term)) << term;
  EXPECT_FALSE(can_redraw("dumb"));
  EXPECT_FALSE(can_redraw(""));
  EXPECT_FALSE(can_redraw(nullptr));
}

TEST(TerminalRules, ColumnsComeBeforeWhatTheTerminalSays) {
  EXPECT_EQ(columns_of("40", 200), 40u);
  EXPECT_EQ(columns_of(nullptr, 200), 200u);
  EXPECT_EQ(columns_of(nullptr, 0), 80u);
  for (const char* wrong : {"", "0", "-1", "+8", " 80", "80 ", "wide", "8e1", "99999999999999999999"}) {
    EXPECT_EQ(columns_of(wrong, 200), 200u) << wrong;
    EXPECT_EQ(columns_of(wrong, 0), 80u) << wrong;
  }
}

// --- whose standard error it is --------------------------------------------------------------------------------------

/// A /proc of made-up processes.
class Processes : public harness::FolderTest {
 protected:
  /// `fds`: what 0, 1, 2, ... are.
  void add(int pid, int parent, const std::string& name, const std::vector<std::string>& fds, int group = 1,
           int foreground = 1) const {
    const auto process = proc() / std::to_string(pid);
    fs::create_directories(process / "fd");
    std::ofstream(process / "comm") << name << '\n';
    std::ofstream(process / "stat") << pid << " (" << name << ") S " << parent << ' ' << group << " 1 34816 "
                                    << foreground << " 4194560 0\n";
    for (std::size_t i = 0; i < fds.size(); ++i) fs::create_symlink(fds[i], process / "fd" / std::to_string(i));
  }
  fs::path proc() const { return folder_ / "proc"; }
  /// The process that was found for process 9; 0: none.
  int found() const {
    const auto process = process_with_terminal(9, proc());
    return process ? std::stoi(process->filename().string()) : 0;
  }
};

const std::vector<std::string> on_terminal{"/dev/null", "/dev/pts/3", "/dev/pts/3"};
const std::vector<std::string> into_pipe{"/dev/null", "pipe:[10]", "pipe:[11]"};
const std::vector<std::string> reading_pipe{"/dev/pts/3", "/dev/pts/3", "/dev/pts/3", "pipe:[10]", "pipe:[11]"};

TEST_F(Processes, OnesOwnTerminalComesFirst) {
  add(9, 5, "weightcast", on_terminal);
  add(5, 1, "mpirun", reading_pipe);
  EXPECT_EQ(found(), 9);
}

TEST_F(Processes, ARankFindsTheTerminalOfItsLauncher) {
  for (const char* launcher : {"mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun"}) {
    fs::remove_all(proc());
    add(9, 7, "weightcast", into_pipe);
    add(7, 5, "sh) -c (", into_pipe);  // a script between them
    add(5, 3, launcher, reading_pipe);
    add(3, 1, "bash", on_terminal);
    EXPECT_EQ(found(), 5) << launcher;
  }
}

TEST_F(Processes, MpichHasARelay) {
  add(9, 7, "weightcast", into_pipe);
  add(7, 5, "hydra_pmi_proxy", {"/dev/null", "socket:[1]", "socket:[2]", "pipe:[11]"});
  add(5, 1, "mpiexec.hydra", on_terminal);
  EXPECT_EQ(found(), 5);
}

TEST_F(Processes, NoLauncherOnThisHost) {
  add(9, 7, "weightcast", into_pipe);
  for (const char* parent : {"orted", "slurmstepd", "bash", "mpirunner"}) {
    fs::remove_all(proc() / "7");
    add(7, 1, parent, reading_pipe);
    EXPECT_EQ(found(), 0) << parent;
  }
}

TEST_F(Processes, WhatWasSentElsewhereDoesNotComeToTheTerminal) {
  add(9, 5, "weightcast", into_pipe);
  add(5, 1, "mpirun", {"/dev/null", "/dev/pts/3", "/home/me/log", "pipe:[11]"});
  EXPECT_EQ(found(), 0) << "mpirun ... 2> log";
  fs::remove_all(proc() / "5");
  add(5, 1, "mpirun", {"/dev/null", "/dev/pts/3", "/dev/pts/3", "pipe:[10]"});
  EXPECT_EQ(found(), 0) << "mpirun sh -c '... 2>&1 | tee log'";
  fs::remove_all(proc() / "9");
  add(9, 5, "weightcast", {"/dev/null", "pipe:[10]", "/home/me/log"});
  EXPECT_EQ(found(), 0) << "mpirun sh -c '... 2> log'";
}

TEST_F(Processes, WhatCannotBeSeenIsNoTerminal) {
  EXPECT_EQ(found(), 0) << "no /proc";
  add(9, 5, "weightcast", into_pipe);
  EXPECT_EQ(found(), 0) << "no parent";
  add(5, 1, "mpirun", {});
  EXPECT_EQ(found(), 0) << "no right to look";
  fs::remove_all(proc() / "9");
  add(9, 5, "weightcast", {});
  EXPECT_EQ(found(), 0);
  fs::remove_all(proc());
  add(9, 9, "weightcast", into_pipe);
  EXPECT_EQ(found(), 0) << "its own parent";
}

TEST_F(Processes, InTheBackgroundSomebodyElseHasTheTerminal) {
  add(9, 1, "a", on_terminal, 9, 9);
  add(8, 1, "b", on_terminal, 8, 9);
  add(7, 1, "no terminal", into_pipe, 7, -1);
  EXPECT_FALSE(in_background(proc() / "9"));
  EXPECT_TRUE(in_background(proc() / "8"));
  EXPECT_FALSE(in_background(proc() / "7"));
  EXPECT_FALSE(in_background(proc() / "6"));
}

// --- what is drawn ---------------------------------------------------------------------------------------------------

constexpr std::uint64_t megabyte = 1'000'000;
const std::string long_label = "checking snapshot /scratch/project/weights/llama-3.1-8b/step-00012345/\xc3\xa4.h5";

TEST(ProgressBar, FitsEveryWidth) {
  for (const auto& label : {std::string("loading weights"), long_label, std::string()}) {
    for (const std::uint64_t total : {std::uint64_t{0}, std::uint64_t{7}, 16061 * megabyte}) {
      for (const std::uint64_t done : {std::uint64_t{0}, total / 3, total, total + 1}) {
        for (std::size_t columns = 1; columns <= 200; ++columns) {
          const auto bar = progress_bar(label, {done, total, 12345.6}, columns - 1);
          EXPECT_LT(bar.size(), columns) << bar;
          EXPECT_THAT(bar, Not(HasSubstr("\n")));
          if (columns >= 20) {
            EXPECT_THAT(bar, HasSubstr(total == 0 ? "12346 s" : "%")) << columns;
          }
        }
      }
    }
  }
}

TEST(ProgressBar, LeavesOutWhatMattersLeast) {
  const ProgressState half{1000 * megabyte, 2000 * megabyte, 4};
  const auto bar = [&](std::size_t width) { return progress_bar("loading weights", half, width); };
  EXPECT_EQ(bar(199),
            "loading weights [####################                    ]  50 %  1.00 GB of 2.00 GB   250 MB/s");
  EXPECT_EQ(bar(79), "loading weights [############            ]  50 %  1.00 GB of 2.00 GB   250 MB/s");
  EXPECT_EQ(bar(59), "loading weights [#######        ]  50 %  1.00 GB of 2.00 GB");
  EXPECT_EQ(bar(39), "loading weights [#######        ]  50 %");
  EXPECT_EQ(bar(29), "loading weights  50 %");
  EXPECT_EQ(bar(19), "loadi...ights  50 %");
  EXPECT_EQ(progress_bar("forming the group", {0, 0, 3}, 79), "forming the group 3 s");
  EXPECT_EQ(progress_bar("forming the group", {0, 0, 3}, 12), "fo...oup 3 s");
  EXPECT_EQ(progress_line("loading weights", half), "loading weights:  50 %  1.00 GB of 2.00 GB   250 MB/s");
  EXPECT_EQ(progress_line("forming the group", {0, 0, 3}), "forming the group: 3 s");
}

/// Runs `task` in a process whose standard error is `fd`.
pid_t in_child(int fd, void (*task)(int go_on), int go_on) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(fd, STDERR_FILENO);
    ::setenv("TERM", "xterm", 1);
    ::unsetenv("COLUMNS");
    task(go_on);
    ::_exit(0);
  }
  return child;
}

/// A task that is half done until a byte comes.
void half_a_task(int go_on) {
  using namespace std::chrono_literals;
  Progress progress("half a task", 100, {.first_bar = 0ms, .bar = 0ms, .line = 0ms});
  progress.add(50);
  char byte = 0;
  [[maybe_unused]] const auto got = ::read(go_on, &byte, 1);
}

/// What is printed until `last` stands in it, or to the end.
std::string read_until(int fd, const std::string& last) {
  std::string text;
  char bytes[4096];
  while (last.empty() || text.find(last) == text.npos) {
    const auto size = ::read(fd, bytes, sizeof(bytes));
    if (size <= 0) break;
    text.append(bytes, static_cast<std::size_t>(size));
  }
  return text;
}

TEST(Progress, DrawsABarAndTakesItAway) {
  const UniqueFd terminal(::posix_openpt(O_RDWR | O_NOCTTY));
  ASSERT_EQ(::grantpt(terminal.get()) | ::unlockpt(terminal.get()), 0);
  UniqueFd printed(::open(::ptsname(terminal.get()), O_RDWR | O_NOCTTY));
  const winsize size{.ws_row = 24, .ws_col = 50, .ws_xpixel = 0, .ws_ypixel = 0};
  ASSERT_EQ(::ioctl(printed.get(), TIOCSWINSZ, &size), 0);
  int go_on[2];
  ASSERT_EQ(::pipe(go_on), 0);
  const auto child = in_child(printed.get(), half_a_task, go_on[0]);
  printed.reset();
  EXPECT_THAT(read_until(terminal.get(), "50 %"), StartsWith("\rhalf a task ["));
  ASSERT_EQ(::write(go_on[1], "", 1), 1);
  const auto rest = read_until(terminal.get(), "");
  EXPECT_THAT(rest, ::testing::EndsWith("\r")) << "the line is empty, and the cursor where it begins";
  const auto line = rest.substr(rest.rfind('\r', rest.size() - 2) + 1);
  EXPECT_EQ(line.find_first_not_of(" \r"), line.npos) << line;
  EXPECT_GT(line.size(), 20u);
  EXPECT_THAT(rest, Not(HasSubstr("\x1b")));
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Progress, PrintsLinesWhereThereIsNoTerminal) {
  int printed[2], go_on[2];
  ASSERT_EQ(::pipe(printed) | ::pipe(go_on), 0);
  const auto child = in_child(printed[1], half_a_task, go_on[0]);
  ::close(printed[1]);
  EXPECT_THAT(read_until(printed[0], "B/s\n"), HasSubstr("half a task:  "));
  ASSERT_EQ(::write(go_on[1], "", 1), 1);
  EXPECT_THAT(read_until(printed[0], ""), Not(HasSubstr("\r")));
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace weightcast
