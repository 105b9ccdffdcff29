#include "weightcast/delta/delta_plan.hpp"

#include <algorithm>
#include <array>

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t alignment_bytes = TransferPlan::alignment_bytes;
constexpr std::size_t octaves = 8;
/// 2^16 times 2^(i/8): by these parts grow within an octave, the same on all machines.
constexpr std::array<std::uint64_t, 8> steps = {65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194};

constexpr std::uint64_t align(std::uint64_t bytes) noexcept {
  return (bytes + alignment_bytes - 1) / alignment_bytes * alignment_bytes;
}

bool even(const Segment& s) noexcept {
  return (s.source_offset | s.source_pitch | s.destination_offset | s.destination_pitch | s.parameter_offset |
          s.parameter_pitch | s.row_bytes) %
             delta_unit_bytes ==
         0;
}

DeltaRun run_of_segment(const Segment& segment, std::uint64_t first_block) noexcept {
  DeltaRun run{first_block,
               segment.source_offset,
               segment.source_pitch,
               segment.destination_offset,
               segment.destination_pitch,
               segment.parameter_offset,
               segment.parameter_pitch,
               segment.row_bytes / delta_unit_bytes,
               segment.rows,
               segment.parameter_index};
  if (segment.contiguous() && segment.contiguous_parameter()) {
    run.row_units *= run.rows;
    run.rows = 1;
  }
  return run;
}

/// Where its parts end: the first has the starts and 1/2^octaves of the room for entries.
std::vector<std::uint64_t> part_ends(std::uint64_t starts_bytes, std::uint64_t entries_bytes) {
  std::vector<std::uint64_t> ends;
  for (std::size_t octave = octaves; octave > 0; --octave) {
    for (const auto step : steps)
      ends.push_back(
          align(starts_bytes + (entries_bytes >> octave) + ((entries_bytes >> octave) * (step - 65536) >> 16)));
  }
  const auto all = align(starts_bytes + entries_bytes);
  ends.push_back(all);
  for (auto& end : ends) end = std::min(end, all);
  return ends;
}

DeltaStream make_stream(std::size_t tp_rank, const Schedule& schedule, const Supply& supply, double limit) {
  DeltaStream stream;
  stream.from = supply.from;
  stream.tp_rank = tp_rank;
  std::uint64_t bytes = 0;
  for (const auto& segment : supply.segments.of(schedule.segments)) {
    stream.runs.push_back(run_of_segment(segment, stream.block_count));
    stream.block_count += stream.runs.back().block_count();
    bytes += segment.size_bytes();
  }
  const auto room = align(static_cast<std::uint64_t>(static_cast<double>(bytes) * limit));
  stream.part_ends = part_ends(stream.starts_bytes(), room);
  stream.capacity = (stream.part_ends.back() - stream.starts_bytes()) / sizeof(DeltaEntry);
  return stream;
}

/// A stream's parts as segments of the movement.
void append_segments(const DeltaStream& stream, bool relayed, std::vector<Segment>& segments) {
  for (std::size_t i = 0; i < stream.part_ends.size(); ++i) {
    const auto begin = i == 0 ? 0 : stream.part_ends[i - 1], size = stream.part_ends[i] - begin;
    if (size == 0) continue;
    Segment segment;
    segment.parameter_index = i;
    segment.from = stream.from;
    segment.parameter_offset = begin;
    segment.destination_offset = stream.inbox_offset + begin;
    segment.source_offset = (relayed ? stream.inbox_offset : stream.outbox_offset) + begin;
    segment.rows = 1;
    segment.row_bytes = segment.parameter_pitch = segment.destination_pitch = segment.source_pitch = size;
    segments.push_back(segment);
  }
}

Schedule schedule_of(std::span<const DeltaStream> streams, std::size_t parts, bool relayed) {
  std::vector<Segment> segments;
  std::vector<Cut> cuts;
  for (const auto& stream : streams) {
    append_segments(stream, relayed, segments);
    for (std::size_t i = 0; i < parts; ++i) cuts.push_back({stream.from, {i, 1}});
  }
  return make_schedule(std::move(segments), parts, cuts, alignment_bytes);
}

}  // namespace

std::size_t DeltaStream::parts(std::uint64_t entries) const noexcept {
  const auto end = std::ranges::lower_bound(part_ends, size_bytes(entries));
  return static_cast<std::size_t>(end - part_ends.begin()) + 1;
}

std::span<const DeltaStream> DeltaPlan::streams_to(std::size_t tp_rank) const noexcept {
  const auto first = std::ranges::lower_bound(streams, tp_rank, {}, &DeltaStream::tp_rank);
  return {first, std::ranges::upper_bound(first, streams.end(), tp_rank, {}, &DeltaStream::tp_rank)};
}

DeltaPlan make_delta_plan(const TransferPlan& plan, double limit) {
  WEIGHTCAST_EXPECTS(limit > 0 && limit <= 1);
  DeltaPlan deltas;
  for (const auto& rank : plan.ranks) {
    if (!std::ranges::all_of(rank.schedule.segments, even)) return deltas;
  }
  auto& movement = deltas.movement;
  movement.tp = plan.tp;
  movement.dp = plan.dp;
  movement.message_bytes = plan.message_bytes;
  movement.pack_bytes = alignment_bytes;
  movement.sources.ranks.resize(plan.sources.ranks.size());
  movement.ranks.resize(plan.ranks.size());
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    std::uint64_t inbox = 0;
    for (const auto& supply : plan.ranks[t].schedule.supplies) {
      auto& stream = deltas.streams.emplace_back(make_stream(t, plan.ranks[t].schedule, supply, limit));
      auto& outbox = movement.sources.ranks[supply.from].size_bytes;
      stream.outbox_offset = outbox;
      stream.inbox_offset = inbox;
      outbox += stream.part_ends.back();
      inbox += stream.part_ends.back();
    }
    movement.slot_bytes = std::max(movement.slot_bytes, inbox);
  }
  if (!deltas.possible()) return deltas;
  const auto parts = deltas.streams.front().part_ends.size();
  for (std::size_t i = 0; i < parts; ++i)
    movement.model.parameters.push_back(
        {.info = {fmt::format("part {} of the delta", i), DType::U8, {}}, .engine_tensor = {}});
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    const auto streams = deltas.streams_to(t);
    auto& rank = movement.ranks[t];
    rank.shards.resize(parts);
    rank.schedule = schedule_of(streams, parts, false);
    if (plan.dp > 1) rank.relay = schedule_of(streams, parts, true);
  }
  return deltas;
}

}  // namespace weightcast
