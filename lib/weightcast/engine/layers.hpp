#pragma once

#include <string>
#include <utility>
#include <vector>

#include "weightcast/telemetry/stopwatch.hpp"

namespace weightcast {

/// Seconds that calls spent in one layer of the request path, the layers below it included.
struct LayerTimes {
  std::string layer;
  std::vector<double> seconds;  ///< one entry for each call

  /// Runs `call` and notes how long it took; its result or exception passes through.
  template <typename Call>
  auto timed(Call&& call) {
    struct Note {
      std::vector<double>& seconds;
      Stopwatch watch;
      ~Note() { seconds.push_back(watch.elapsed_s()); }
    } note{seconds, {}};
    return std::forward<Call>(call)();
  }
};

}  // namespace weightcast
