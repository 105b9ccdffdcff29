#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "weightcast/telemetry/stopwatch.hpp"

namespace weightcast {

/// One call of a layer: when it began, on the clock of Stopwatch, and how long it took.
struct TimedCall {
  std::int64_t begin_ns = 0, duration_ns = 0;
};

/// When calls passed one layer of the request path, and the seconds that they spent there, the layers below it
/// included: how many calls there were, and the last ones. Allocates when it is made and never again. Thread-safe.
class LayerTimes {
 public:
  static constexpr std::uint64_t kept = 8192;  ///< calls

  explicit LayerTimes(std::string layer) : layer_(std::move(layer)), ring_(kept) {}

  const std::string& layer() const noexcept { return layer_; }
  std::uint64_t calls() const noexcept {
    const std::scoped_lock lock(mutex_);
    return calls_;
  }
  void note(TimedCall call) noexcept {
    const std::scoped_lock lock(mutex_);
    ring_[calls_++ % kept] = call;
  }
  /// A call that ends now and began with `watch`.
  void note(const Stopwatch& watch) noexcept { note({watch.begin_ns(), watch.elapsed_ns()}); }

  struct Last {
    std::uint64_t calls = 0;        ///< of all time
    std::vector<TimedCall> kept{};  ///< the last of them, oldest first
  };
  /// The last `count` calls, or as many as are kept.
  Last last_calls(std::uint64_t count) const {
    const std::scoped_lock lock(mutex_);
    Last last{calls_};
    for (auto call = calls_ - std::min({count, calls_, kept}); call < calls_; ++call)
      last.kept.push_back(ring_[call % kept]);
    return last;
  }
  /// Their seconds.
  std::vector<double> last(std::uint64_t count) const {
    std::vector<double> seconds;
    for (const auto& call : last_calls(count).kept) seconds.push_back(1e-9 * static_cast<double>(call.duration_ns));
    return seconds;
  }

  /// Runs `call` and notes how long it took; its result or exception passes through.
  template <typename Call>
  auto timed(Call&& call) {
    struct Note {
      LayerTimes& times;
      Stopwatch watch;
      ~Note() { times.note(watch); }
    } note{*this, {}};
    return std::forward<Call>(call)();
  }

 private:
  std::string layer_;
  mutable std::mutex mutex_;
  std::vector<TimedCall> ring_;
  std::uint64_t calls_ = 0;
};

}  // namespace weightcast
