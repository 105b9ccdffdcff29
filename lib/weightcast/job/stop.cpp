#include "weightcast/job/stop.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "weightcast/core/temporary.hpp"
#include "weightcast/job/launch.hpp"

namespace weightcast {
namespace {

// Atomic and not sig_atomic_t, because threads look at them.
std::atomic<bool> only_noted = false;
std::atomic<int> noted = 0;
std::atomic<bool> from_launcher = false;
static_assert(std::atomic<int>::is_always_lock_free);

void on_signal(int number, siginfo_t* sender, void* /*context*/) {
  if (only_noted && !(number == SIGINT && noted == SIGINT)) {
    noted = number;
    if (number == SIGTERM && sender->si_pid == ::getppid()) from_launcher = true;
    if (number != SIGUSR1) discard_large_output();
    return;
  }
  discard_unfinished_output();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

bool is(const char* variable, std::string_view value) noexcept {
  const char* text = std::getenv(variable);
  return text != nullptr && text == value;
}

/// Whether a batch system started this and nobody sits before it.
bool in_batch() noexcept {
  return is("ENVIRONMENT", "BATCH") || is("PBS_ENVIRONMENT", "PBS_BATCH") ||
         (std::getenv("LSB_JOBID") != nullptr && std::getenv("LSB_INTERACTIVE") == nullptr);
}

}  // namespace

void catch_signals() {
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) ::sigaction(number, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
}

void note_signals() noexcept {
  only_noted = true;
}

void obey_signals() {
  only_noted = false;
  if (const int number = noted; number != 0 && number != SIGUSR1) std::raise(number);
}

void obey_coming_signals() noexcept {
  only_noted = false;
}

int noted_signal() noexcept {
  return noted;
}

bool told_by_launcher() noexcept {
  return from_launcher && launch_size() > 1;
}

void leave_now(ExitCode code) noexcept {
  std::fflush(nullptr);
  ::_exit(static_cast<int>(code));
}

bool ready_to_print() noexcept {
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  while (::poll(&output, 1, 100) <= 0) {
    if (noted != 0) return false;
  }
  return true;
}

Error stopped_by(int number, std::string_view when) {
  const auto what = fmt::format("stopped by SIG{} {}", ::sigabbrev_np(number), when);
  const char* more = "give the job more time, or ask it for less";
  if (number == SIGUSR1) return {ExitCode::deadline, what, more};
  return {ExitCode::deadline, "interrupted: " + what,
          number == SIGTERM && in_batch() ? more : "nothing unfinished is left: start it again when you like"};
}

void stop_if_asked(std::string_view when) {
  if (const int number = noted; number != 0) throw stopped_by(number, when);
}

void run_until_asked(std::string_view when, FunctionRef<void()> body) {
  note_signals();
  try {
    body();
  } catch (...) {
    stop_if_asked(when);
    throw;
  }
  obey_signals();
}

}  // namespace weightcast
