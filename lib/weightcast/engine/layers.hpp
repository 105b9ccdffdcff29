#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "weightcast/telemetry/stopwatch.hpp"

namespace weightcast {

/// Seconds that calls spent in one layer of the request path, the layers below it included: how many calls there were,
/// and the times of the last ones. Allocates when it is made and never again. Thread-safe.
class LayerTimes {
 public:
  static constexpr std::uint64_t kept = 8192;  ///< calls

  explicit LayerTimes(std::string layer) : layer_(std::move(layer)), seconds_(kept) {}

  const std::string& layer() const noexcept { return layer_; }
  std::uint64_t calls() const noexcept {
    const std::scoped_lock lock(mutex_);
    return calls_;
  }
  void note(double seconds) noexcept {
    const std::scoped_lock lock(mutex_);
    seconds_[calls_++ % kept] = seconds;
  }
  /// Of the last `count` calls, or as many as are kept; oldest first.
  std::vector<double> last(std::uint64_t count) const {
    const std::scoped_lock lock(mutex_);
    count = std::min({count, calls_, kept});
    std::vector<double> result;
    for (auto call = calls_ - count; call < calls_; ++call) result.push_back(seconds_[call % kept]);
    return result;
  }

  /// Runs `call` and notes how long it took; its result or exception passes through.
  template <typename Call>
  auto timed(Call&& call) {
    struct Note {
      LayerTimes& times;
      Stopwatch watch;
      ~Note() { times.note(watch.elapsed_s()); }
    } note{*this, {}};
    return std::forward<Call>(call)();
  }

 private:
  std::string layer_;
  mutable std::mutex mutex_;
  std::vector<double> seconds_;  // a ring
  std::uint64_t calls_ = 0;
};

}  // namespace weightcast
