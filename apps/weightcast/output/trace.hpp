#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "weightcast/telemetry/report.hpp"
#include "weightcast/telemetry/stopwatch.hpp"

namespace weightcast {

/// A timeline of the updates as each trainer rank saw them, in the trace event format of chrome://tracing and Perfetto.
class Trace {
 public:
  /// Notes an update that has just ended on this trainer rank.
  void add(const ReportUpdate& update, std::size_t trainer_rank);
  std::string to_json() const;

 private:
  struct Event {
    std::string name;
    std::size_t rank;
    double begin_s, duration_s;
  };
  Stopwatch clock_;
  std::vector<Event> events_;
};

}  // namespace weightcast
