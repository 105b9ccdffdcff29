#pragma once

#include <chrono>

namespace weightcast {

/// Measures wall time in seconds. On a GPU the caller synchronises the device on both sides of what it measures: a
/// timer on asynchronous work lies.
class Stopwatch {
 public:
  /// Seconds since construction or the last lap().
  double elapsed_s() const noexcept { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  /// elapsed_s(), and starts over.
  double lap() noexcept {
    const double seconds = elapsed_s();
    begin_ = Clock::now();
    return seconds;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace weightcast
