#pragma once

#include <chrono>
#include <cstdint>

namespace weightcast {

/// Measures wall time. On a GPU the caller synchronises the device on both sides of what it measures: a timer on
/// asynchronous work lies. The clock is steady, and the same for all processes of a host.
class Stopwatch {
 public:
  /// Since construction or the last lap().
  double elapsed_s() const noexcept { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  std::int64_t elapsed_ns() const noexcept { return nanoseconds(Clock::now() - begin_); }
  /// elapsed_s(), and starts over at that very moment.
  double lap() noexcept {
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    begin_ = now;
    return seconds;
  }
  /// When it began, as the clock has it.
  std::int64_t begin_ns() const noexcept { return nanoseconds(begin_.time_since_epoch()); }

 private:
  using Clock = std::chrono::steady_clock;
  static std::int64_t nanoseconds(Clock::duration duration) noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
  }
  Clock::time_point begin_ = Clock::now();
};

}  // namespace weightcast
