#pragma once

#include <chrono>

namespace weightcast {

/// A point in time after which a wait gives up. Monotonic clock.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Deadline(Clock::time_point at) noexcept : at_(at) {}
  /// `seconds` from now.
  static Deadline after(double seconds) noexcept {
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  }
  /// This deadline, `seconds` later: what somebody waits who waits for one that waits.
  Deadline plus(double seconds) const noexcept {
    return Deadline(at_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  }

  Clock::time_point at() const noexcept { return at_; }
  bool passed() const noexcept { return Clock::now() >= at_; }
  /// Seconds left; 0 when passed.
  double remaining_s() const noexcept {
    const double left = std::chrono::duration<double>(at_ - Clock::now()).count();
    return left > 0 ? left : 0;
  }

 private:
  Clock::time_point at_;
};

/// Seconds in which so many bytes are read or written at the slowest pace of a disk that works.
constexpr double longest_disk_s(std::uint64_t bytes) noexcept {
  constexpr double slowest_bytes_per_s = 50e6;  // a network disk that many read
  return static_cast<double>(bytes) / slowest_bytes_per_s;
}

/// Seconds in which a GPU that works has been through so many bytes, whatever else it has been given.
constexpr double longest_gpu_s(std::uint64_t bytes) noexcept {
  constexpr double others_s = 60;
  return others_s + longest_disk_s(bytes);
}

}  // namespace weightcast
