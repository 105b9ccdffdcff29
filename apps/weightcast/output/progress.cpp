#include "output/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "weightcast/core/bytes.hpp"
#include "weightcast/job/launch.hpp"

namespace weightcast {

Progress::Progress(std::string label, std::uint64_t total_bytes) : label_(std::move(label)), total_(total_bytes) {
  if (launch_rank() == 0) thread_ = std::jthread([this](std::stop_token stop) { show(std::move(stop)); });
}

Progress::~Progress() = default;  // the thread is stopped and joined first: it is the last member

void Progress::show(std::stop_token stop) {
  using namespace std::chrono_literals;
  constexpr std::uint64_t width = 30;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  const auto start = std::chrono::steady_clock::now();
  bool shown = false;
  std::unique_lock lock(mutex_);
  std::chrono::milliseconds pause = terminal ? 1s : 10s;
  while (!wake_.wait_for(lock, stop, pause, [&] { return stop.stop_requested(); })) {
    const std::uint64_t done = std::min<std::uint64_t>(done_, total_);
    const double share = total_ == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total_);
    const double elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto rate = static_cast<std::uint64_t>(static_cast<double>(done) / elapsed_s);
    const std::string state = fmt::format("{:3.0f} %  {} of {}  {}/s", 100 * share, format_size(done),
                                          format_size(total_), format_size(rate));
    if (terminal) {
      const auto filled = static_cast<std::size_t>(share * static_cast<double>(width));
      fmt::print(stderr, "\r{} [{:<{}}] {}\033[K", label_, std::string(filled, '#'), width, state);
      pause = 200ms;
    } else {
      fmt::print(stderr, "{}: {}\n", label_, state);
    }
    std::fflush(stderr);
    shown = true;
  }
  if (shown && terminal) fmt::print(stderr, "\r\033[K");
}

}  // namespace weightcast
