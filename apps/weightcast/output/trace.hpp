#pragma once

#include <string>
#include <vector>

#include "weightcast/telemetry/report.hpp"
#include "weightcast/telemetry/stopwatch.hpp"

namespace weightcast {

/// A timeline of the updates as rank 0 saw them, in the trace event format of chrome://tracing and Perfetto.
class Trace {
 public:
  /// Notes an update that has just ended.
  void add(const ReportUpdate& update);
  std::string to_json() const;

 private:
  struct Event {
    std::string name;
    double begin_s, duration_s;
  };
  Stopwatch clock_;
  std::vector<Event> events_;
};

}  // namespace weightcast
