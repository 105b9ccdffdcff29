#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "weightcast/core/function_ref.hpp"

namespace weightcast {

/// Runs task(0) ... task(count - 1) on up to `threads` threads, the caller's included; each index once, in no fixed
/// order. Returns when all are done; the first exception is rethrown after the others have finished (later tasks are
/// not begun).
void parallel_for(std::size_t count, std::size_t threads, const std::function<void(std::size_t)>& task);

/// The same with something of its own for each thread, made by it: task(own, index).
template <typename Make, typename Task>
void parallel_for(std::size_t count, std::size_t threads, const Make& make, const Task& task) {
  std::atomic<std::size_t> next{0};
  const auto used = std::max<std::size_t>(std::min(threads, count), 1);
  parallel_for(used, used, [&](std::size_t) {
    auto own = make();
    try {
      for (std::size_t i = next++; i < count; i = next++) task(own, i);
    } catch (...) {
      next = count;
      throw;
    }
  });
}

/// Threads that are started once, for work that comes again and again: parked in between.
class Workers {
 public:
  /// Starts `count` threads beside the caller's. Throws std::system_error when the system has none left.
  explicit Workers(std::size_t count);
  Workers(Workers&&) = delete;

  /// Calls `task`, which may not throw, on the caller's thread and on every worker that wakes up in time; returns when
  /// all calls have ended. Allocates nothing. One run() at a time.
  void run(FunctionRef<void()> task) noexcept;
  /// The same of ranges: task(first, last) for [0, count) in steps of up to `step`, each once, in no fixed order.
  template <typename Task>
  void run_ranges(std::uint64_t count, std::uint64_t step, const Task& task) noexcept {
    std::atomic<std::uint64_t> next{0};
    run([&] {
      for (auto first = next.fetch_add(step); first < count; first = next.fetch_add(step))
        task(first, std::min(first + step, count));
    });
  }

 private:
  void serve(const std::stop_token& stop) noexcept;

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable done_;
  FunctionRef<void()> task_;  // empty: park
  std::size_t runs_ = 0, busy_ = 0;
  std::vector<std::jthread> threads_;  // last: they use the members above
};

/// Cores that this process may run on (its affinity mask), at least 1.
std::size_t available_cores() noexcept;

}  // namespace weightcast
