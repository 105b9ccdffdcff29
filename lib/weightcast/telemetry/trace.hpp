#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// What the ranks of a job did, and when, as trace events for Perfetto and chrome://tracing (trace.md): a process for
/// each rank, threads for each track.
namespace weightcast {

/// Something that a rank did. Times are those of the rank that writes, from the beginning of the job.
struct TraceSpan {
  std::string name;
  std::int64_t begin_ns = 0, duration_ns = 0;
  std::uint64_t number = 0;  ///< of the update, read, ... that it belongs to
  bool failed = false;
};

/// The spans of one layer. Where they overlap, because several threads are in that layer, they take several lanes, each
/// a thread of the trace: within a thread nothing overlaps.
struct TraceTrack {
  std::string name;
  std::string counted;        ///< what `number` counts
  std::uint64_t dropped = 0;  ///< earlier calls that are not among the spans; the name will say so
  std::vector<TraceSpan> spans{};
};

struct TraceRank {
  int rank = 0;
  std::string name;
  /// By how much its times may be wrong against the writer's; 0 on the same host.
  std::int64_t clock_error_ns = 0;
  std::vector<TraceTrack> tracks{};
};

/// JSON text, an event on each line, with a final newline. Bytes that are not UTF-8 are replaced.
std::string to_trace_json(std::vector<TraceRank> ranks);

}  // namespace weightcast
