#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace weightcast {

/// How far a task is. `total_bytes` = 0: nobody knows.
struct ProgressState {
  std::uint64_t done_bytes = 0, total_bytes = 0;
  double elapsed_s = 0;
};

/// "loading weights: 45 %  1.11 GB of 2.47 GB  556 MB/s", or "forming the group: 3 s" where sizes are not known.
std::string progress_line(const std::string& label, const ProgressState& state);
/// The same with a bar behind the label, of at most `width` bytes: the rate, the sizes and then the bar are left out
/// where they do not fit, and the label is shortened.
std::string progress_bar(const std::string& label, const ProgressState& state, std::size_t width);

/// When to speak of a task: first on a terminal, again there, and each time where there is none.
struct ProgressPace {
  std::chrono::milliseconds first_bar{1000}, bar{200}, line{2000};
};

/// How far a long task is: on a terminal (that of mpirun, too) a bar that appears after a second and leaves nothing
/// behind, else a line on stderr every two seconds. Silent on ranks other than 0. Lives as long as the task; one at a
/// time.
class Progress {
 public:
  /// `label` says what is going on: "writing synth". `total_bytes` = 0: it takes as long as it takes.
  explicit Progress(std::string label, std::uint64_t total_bytes = 0, ProgressPace pace = {});
  ~Progress();
  Progress(Progress&&) = delete;

  /// `bytes` more are done. Thread-safe.
  void add(std::uint64_t bytes) noexcept { done_.fetch_add(bytes, std::memory_order_relaxed); }
  /// The task begins anew, and something is printed before: takes the bar away.
  void restart() noexcept;
  /// From now on nothing is drawn by any object, and no bar is there: the process ends with an error. Thread-safe.
  static void silence() noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  void show(const std::stop_token& stop);
  ProgressState state() const noexcept;

  std::string label_;
  std::uint64_t total_;
  ProgressPace pace_;
  std::atomic<std::uint64_t> done_{0};
  std::atomic<Clock::time_point> start_{Clock::now()};
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;
};

}  // namespace weightcast
