#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <span>
#include <utility>

#include "weightcast/plan/transfer_plan.hpp"

// What is executed against what was planned: copies, tasks and packed rows are walked beside the segments, and must
// take every byte from where it is to where it belongs, once.

namespace weightcast {
namespace {

/// Runs, and how much of the first is taken off.
struct Walk {
  std::size_t from = 0;
  std::uint64_t source_offset = 0, destination_offset = 0, row_bytes = 0, rows = 0, source_pitch = 0,
                destination_pitch = 0, taken = 0;

  Walk(const Copy& copy)  // NOLINT(google-explicit-constructor): a list of them is made from lists of others
      : from(copy.from),
        source_offset(copy.source_offset),
        destination_offset(copy.destination_offset),
        row_bytes(copy.size_bytes),
        rows(copy.size_bytes == 0 ? 0 : 1) {}
  Walk(const Segment& segment)  // NOLINT(google-explicit-constructor)
      : from(segment.from),
        source_offset(segment.source_offset),
        destination_offset(segment.destination_offset),
        row_bytes(segment.row_bytes),
        rows(segment.row_bytes == 0 ? 0 : segment.rows),
        source_pitch(segment.source_pitch),
        destination_pitch(segment.destination_pitch) {
    if (!segment.contiguous() || rows == 0) return;
    row_bytes *= rows;
    rows = 1;
  }

  void take_rows(std::uint64_t count) {
    source_offset += count * source_pitch;
    destination_offset += count * destination_pitch;
    rows -= count;
  }
  void take_bytes(std::uint64_t bytes) {
    taken += bytes;
    if (taken < row_bytes) return;
    taken = 0;
    take_rows(1);
  }
};

/// Takes off both what they share at their beginning. False: they begin elsewhere, or are not of the same place.
bool take_shared(Walk& a, Walk& b) {
  if (a.from != b.from || a.source_offset + a.taken != b.source_offset + b.taken ||
      a.destination_offset + a.taken != b.destination_offset + b.taken)
    return false;
  if (a.taken == 0 && b.taken == 0 && a.row_bytes == b.row_bytes && a.source_pitch == b.source_pitch &&
      a.destination_pitch == b.destination_pitch) {
    const auto rows = std::min(a.rows, b.rows);
    a.take_rows(rows);
    b.take_rows(rows);
  } else {
    const auto bytes = std::min(a.row_bytes - a.taken, b.row_bytes - b.taken);
    a.take_bytes(bytes);
    b.take_bytes(bytes);
  }
  return true;
}

/// Whether both lists bring the same bytes to the same places; neither may bring any twice.
bool same_bytes(std::vector<Walk> mine, std::vector<Walk> theirs) {
  const auto before = [](const Walk& a, const Walk& b) {
    return std::pair(a.from, a.source_offset) < std::pair(b.from, b.source_offset);
  };
  for (auto* list : {&mine, &theirs}) std::sort(list->begin(), list->end(), before);
  auto a = mine.begin();
  auto b = theirs.begin();
  while (true) {
    while (a != mine.end() && a->rows == 0) ++a;
    while (b != theirs.end() && b->rows == 0) ++b;
    if (a == mine.end() || b == theirs.end()) return a == mine.end() && b == theirs.end();
    if (!take_shared(*a, *b)) return false;
  }
}

/// Whether the tasks of a segment are the segment, in order. One at a time: a large one has millions.
bool tasks_are(const Segment& segment) {
  Walk left(segment);
  bool same = true;
  for_each_task(segment, copy_block_bytes, [&](const Segment& task) {
    for (Walk walk(task); same && walk.rows != 0;) same = left.rows != 0 && take_shared(left, walk);
  });
  return same && left.rows == 0;
}

/// Why the steps cannot be packed one after the other into a buffer of `pack_bytes`, or nothing. Appends their rows.
std::string unpack(const Schedule& schedule, const Part& part, std::uint64_t pack_bytes, std::vector<Walk>& rows) {
  for (const auto& step : part.pack_steps.of(schedule.pack_steps)) {
    std::uint64_t end = 0;
    for (const auto& packed : step.of(schedule.packed)) {
      if (packed.segment_index < part.segments.first || packed.segment_index >= part.segments.end())
        return "a pack step of another part";
      const Segment& segment = schedule.segments[packed.segment_index];
      if (packed.row_count == 0 || packed.first_row > segment.rows ||
          packed.row_count > segment.rows - packed.first_row)
        return "packed rows that are not in their segment";
      const auto bytes = packed.row_count * segment.row_bytes;
      if (packed.pack_offset < end || packed.pack_offset > pack_bytes || bytes > pack_bytes - packed.pack_offset)
        return "a pack step that does not fit its buffer";
      end = packed.pack_offset + bytes;
      rows.emplace_back(segment.rows_from(packed.first_row, packed.row_count));
    }
  }
  return {};
}

std::string prove_part(const Schedule& schedule, const Part& part, std::uint64_t pack_bytes) {
  const auto inside = [](const Range& range, const auto& list) {
    return range.first <= list.size() && range.count <= list.size() - range.first;
  };
  if (!inside(part.segments, schedule.segments) || !inside(part.copies, schedule.copies) ||
      !inside(part.pulled, schedule.halves) || !inside(part.pushed, schedule.halves) ||
      !inside(part.pack_steps, schedule.pack_steps)) {
    return "items outside of the lists";
  }
  const auto segments = part.segments.of(schedule.segments);
  const auto mine = [&](const Segment& s) {
    return s.from == part.from && s.parameter_index >= part.parameters.first &&
           s.parameter_index < part.parameters.end();
  };
  if (!std::ranges::all_of(segments, mine)) return "segments of other parameters, or from another trainer rank";
  const std::vector<Walk> planned(segments.begin(), segments.end());
  const auto copies = part.copies.of(schedule.copies);
  std::vector<Walk> executed(copies.begin(), copies.end()), sent = executed;
  for (const auto& segment : segments) {
    if (segment.contiguous()) continue;
    if (!tasks_are(segment)) return "tasks differ from their segment";
    executed.emplace_back(segment);
  }
  if (!same_bytes(std::move(executed), planned)) return "copies and tasks differ from the segments";
  if (part.pulled.count + part.pushed.count != 0) {
    const auto pulled = part.pulled.of(schedule.halves), pushed = part.pushed.of(schedule.halves);
    std::vector<Walk> halves(pulled.begin(), pulled.end());
    halves.insert(halves.end(), pushed.begin(), pushed.end());
    if (!same_bytes(std::move(halves), {copies.begin(), copies.end()}))
      return "what is pulled and pushed differs from the copies";
  }
  for (const auto& step : part.pack_steps.of(schedule.pack_steps)) {
    if (!inside(step, schedule.packed)) return "a pack step outside of the list";
  }
  const auto misfit = unpack(schedule, part, pack_bytes, sent);
  if (!misfit.empty()) return misfit;
  return same_bytes(std::move(sent), planned) ? "" : "copies and packed rows differ from the segments";
}

/// Each trainer rank's segments lie together, by parameter, and so do its parts; nothing lies between them.
std::string prove_supplies(const Schedule& schedule) {
  std::size_t segments = 0, parts = 0;
  std::set<std::size_t> seen;
  for (const auto& supply : schedule.supplies) {
    if (supply.segments.first != segments || supply.parts.first != parts || supply.segments.count == 0 ||
        supply.segments.count > schedule.segments.size() - segments ||
        supply.parts.count > schedule.whole.size() - parts || !seen.insert(supply.from).second)
      return "trainer ranks are out of order";
    segments = supply.segments.end();
    parts = supply.parts.end();
    const auto sent = supply.segments.of(schedule.segments);
    const auto from = [&](const auto& item) { return item.from == supply.from; };
    if (!std::ranges::all_of(sent, from) || !std::ranges::is_sorted(sent, {}, &Segment::parameter_index))
      return "segments are out of order";
    if (!std::ranges::all_of(supply.parts.of(schedule.whole), from)) return "parts are out of order";
  }
  if (segments != schedule.segments.size()) return "segments from nowhere";
  return parts == schedule.whole.size() ? "" : "parts from nowhere";
}

/// Parts that have these segments, and every parameter once, in any order.
std::string prove_parts(const Schedule& schedule, std::span<const Part> parts, std::size_t segment_count,
                        std::size_t parameter_count, std::uint64_t pack_bytes) {
  std::vector<Range> ranges;
  for (const auto& part : parts) {
    const std::string violation = prove_part(schedule, part, pack_bytes);
    if (!violation.empty()) return fmt::format("part {}: {}", ranges.size(), violation);
    ranges.push_back(part.parameters);
    // No two parts have a parameter in common, so none is counted twice.
    segment_count -= part.segments.count;
  }
  std::ranges::sort(ranges, {}, &Range::first);
  std::size_t end = 0;
  for (const auto& range : ranges) {
    if (range.first != end || range.count == 0) return "parameters in no part, or in two";
    end = range.end();
  }
  if (end != parameter_count) return "parameters in no part";
  return segment_count == 0 ? "" : "segments in no part";
}

/// A part for each trainer rank that brings some of the parameter, in the order of the walk; or an empty one.
std::string prove_single(const Schedule& schedule, std::size_t parameter_count, std::uint64_t pack_bytes) {
  const auto& first = schedule.first_single;
  if (first.size() != parameter_count + 1 || first.front() != 0 || first.back() != schedule.single.size() ||
      !std::ranges::is_sorted(first))
    return "not a part for each parameter";
  std::size_t segments = 0;
  for (std::size_t p = 0; p < parameter_count; ++p) {
    const auto parts = std::span(schedule.single).subspan(first[p], first[p + 1] - first[p]);
    if (parts.empty()) return "parameters in no part";
    auto supply = schedule.supplies.begin();
    for (const auto& part : parts) {
      if (part.parameters != Range{p, 1}) return "parameters in no part, or in two";
      if (part.segments.count == 0 && parts.size() > 1) return "a part without a segment";
      if (part.segments.count != 0) {
        supply = std::find_if(supply, schedule.supplies.end(), [&](const Supply& s) { return s.from == part.from; });
        if (supply == schedule.supplies.end()) return "trainer ranks are out of order";
        ++supply;
      }
      const std::string violation = prove_part(schedule, part, pack_bytes);
      if (!violation.empty()) return fmt::format("parameter {}: {}", p, violation);
      segments += part.segments.count;
    }
  }
  return segments == schedule.segments.size() ? "" : "segments in no part";
}

}  // namespace

std::string prove_schedule(const Schedule& schedule, std::size_t parameter_count, std::uint64_t pack_bytes) {
  std::string violation = prove_supplies(schedule);
  for (const auto& supply : schedule.supplies) {
    if (!violation.empty()) break;
    violation =
        prove_parts(schedule, supply.parts.of(schedule.whole), supply.segments.count, parameter_count, pack_bytes);
  }
  return violation.empty() ? prove_single(schedule, parameter_count, pack_bytes) : violation;
}

}  // namespace weightcast
