#pragma once

#include <array>
#include <cmath>
#include <cstddef>

#include "weightcast/telemetry/layer_times.hpp"
#include "weightcast/update/update_group.hpp"

namespace weightcast {

/// What the calls consist of that moved weights: as many of each stage, one behind the other.
class StageTimes {
 public:
  static constexpr std::array<const char*, 5> names{"prepare", "stage", "verify", "vote", "commit"};

  void note(const UpdateResult& result) noexcept {
    auto begin_ns = result.begin_ns;
    std::size_t i = 0;
    for (const auto seconds : {result.prepare_s, result.stage_s, result.verify_s, result.vote_s, result.commit_s}) {
      const TimedCall call{begin_ns, std::llround(1e9 * seconds)};
      times_[i++].note(call);
      begin_ns += call.duration_ns;
    }
  }
  const std::array<LayerTimes, names.size()>& times() const noexcept { return times_; }

 private:
  std::array<LayerTimes, names.size()> times_{LayerTimes(names[0]), LayerTimes(names[1]), LayerTimes(names[2]),
                                              LayerTimes(names[3]), LayerTimes(names[4])};
};

}  // namespace weightcast
