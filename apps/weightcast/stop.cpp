#include "stop.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

// Atomic and not sig_atomic_t, because threads look at them.
std::atomic<bool> only_noted = false;
std::atomic<int> noted = 0;
static_assert(std::atomic<int>::is_always_lock_free);

void on_signal(int number) {
  if (only_noted) {
    noted = number;
    return;
  }
  discard_unfinished_output();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

}  // namespace

void catch_signals() {
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) std::signal(number, on_signal);
}

void note_signals() noexcept {
  only_noted = true;
}

void obey_signals() {
  only_noted = false;
  if (const int number = noted; number != 0 && number != SIGUSR1) std::raise(number);
}

int noted_signal() noexcept {
  return noted;
}

bool ready_to_print() noexcept {
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  while (::poll(&output, 1, 100) <= 0) {
    if (noted != 0) return false;
  }
  return true;
}

Error stopped_by(int number, std::string_view when) {
  return {ExitCode::deadline, fmt::format("stopped by SIG{} {}", ::sigabbrev_np(number), when),
          "give the job more time, or ask it for less"};
}

void stop_if_asked() {
  if (const int number = noted; number != 0) throw stopped_by(number, "while it read weights");
}

}  // namespace weightcast
