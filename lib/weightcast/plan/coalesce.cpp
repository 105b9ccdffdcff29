#include <algorithm>

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

/// One run when it is contiguous on both sides, so that equal copies look equal.
Segment flattened(Segment segment) {
  if (segment.contiguous_source() && segment.contiguous_destination()) {
    segment.row_bytes = segment.source_pitch = segment.destination_pitch = segment.size_bytes();
    segment.rows = 1;
  }
  return segment;
}

/// Appends `next` to `last` if it continues it on both sides: as one longer run, or as more rows at the same pitches.
bool extend(Segment& last, const Segment& next) {
  if (last.rows == 1 && next.rows == 1) {
    if (next.source != last.source + last.row_bytes || next.destination != last.destination + last.row_bytes)
      return false;
    last.row_bytes += next.row_bytes;
    last.source_pitch = last.destination_pitch = last.row_bytes;
    return true;
  }
  if (next.row_bytes != last.row_bytes || next.source_pitch != last.source_pitch ||
      next.destination_pitch != last.destination_pitch || next.source != last.source + last.rows * last.source_pitch ||
      next.destination != last.destination + last.rows * last.destination_pitch) {
    return false;
  }
  last.rows += next.rows;
  return true;
}

}  // namespace

std::vector<Segment> coalesce(std::vector<Segment> segments) {
  std::erase_if(segments, [](const Segment& segment) { return segment.size_bytes() == 0; });
  std::sort(segments.begin(), segments.end(),
            [](const Segment& a, const Segment& b) { return a.destination < b.destination; });
  std::vector<Segment> result;
  for (const auto& segment : segments) {
    const Segment next = flattened(segment);
    if (result.empty() || !extend(result.back(), next)) result.push_back(next);
  }
  result.shrink_to_fit();
  return result;
}

}  // namespace weightcast
