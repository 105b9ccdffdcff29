#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/plan/tiling.hpp"
#include "weightcast/plan/transfer_plan.hpp"

// The proof trusts nothing that make_plan() computed and shares no code with it: it takes the parameter table (names,
// shapes, kinds) and the regions, and asks whether the segments are a tiling of them.

namespace weightcast {
namespace {

/// How many ranks must read every byte of the parameter.
std::uint64_t multiplicity(const ParameterRule& rule, std::uint64_t tp) {
  const std::uint64_t readers = rule.experts > 0 ? tp / rule.ep : tp;
  if (rule.kind == ShardKind::replicated) return readers;
  return rule.kind == ShardKind::kv_heads && readers > rule.units ? readers / rule.units : 1;
}

std::string prove_placement(const TransferPlan& plan) {
  const auto& parameters = plan.model.parameters;
  if (plan.ranks.size() != plan.tp) return fmt::format("{} ranks in a plan for tp {}", plan.ranks.size(), plan.tp);
  std::vector<ByteRange> ranges;
  std::vector<std::size_t> placed(parameters.size(), 0);
  for (const auto& tensor : plan.engine_tensors) {
    const auto size = TensorInfo{tensor.name, tensor.dtype, {tensor.shape.rows, tensor.shape.columns}}.size_bytes();
    if (!size || *size == 0 || *size != tensor.size_bytes) return fmt::format("{}: wrong size", tensor.name);
    if (tensor.offset % TransferPlan::alignment_bytes != 0) return fmt::format("{}: not aligned", tensor.name);
    ranges.push_back({tensor.offset, tensor.size_bytes});
    for (const auto i : tensor.parameters) {
      if (i >= parameters.size() || parameters[i].info.dtype != tensor.dtype) {
        return fmt::format("{}: made of a parameter that does not fit", tensor.name);
      }
      ++placed[i];
    }
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (placed[i] != 1) return fmt::format("{}: part of {} engine tensors", parameters[i].info.name, placed[i]);
  }
  if (!ranges_fit(std::move(ranges), plan.slot_bytes)) return "engine tensors overlap or leave the slot";
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    if (plan.ranks[t].shards.size() != parameters.size() || plan.ranks[t].copies.size() != parameters.size())
      return fmt::format("tp rank {}: not a shard per parameter", t);
  }
  return {};
}

/// Every byte of every engine tensor of every rank is written once or is padding.
std::string prove_destinations(const TransferPlan& plan) {
  std::vector<Rectangle> rectangles;
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    const RankPlan& rank = plan.ranks[t];
    std::size_t padding_seen = 0;
    for (const auto& tensor : plan.engine_tensors) {
      const Matrix matrix{tensor.offset, tensor.shape.rows, tensor.size_bytes / tensor.shape.rows};
      rectangles.clear();
      std::uint64_t previous = 0;
      for (const auto i : tensor.parameters) {
        const Shard& s = rank.shards[i];
        if (s.rows == 0) continue;
        const std::string& parameter = plan.model.parameters[i].info.name;
        if (!append_rectangles(matrix, {s.destination_offset, s.row_bytes, s.rows, s.destination_pitch}, rectangles)) {
          return fmt::format("tp rank {}: {} is written outside of {}", t, parameter, tensor.name);
        }
        if (s.destination_offset < previous)
          return fmt::format("tp rank {}: {} lies before its part of {}", t, parameter, tensor.name);
        previous = s.destination_offset;
      }
      for (const auto& range : rank.padding) {
        if (range.offset < tensor.offset || range.offset - tensor.offset >= tensor.size_bytes) continue;
        ++padding_seen;
        if (!append_rectangles(matrix, {range.offset, range.size_bytes, 1, range.size_bytes}, rectangles)) {
          return fmt::format("tp rank {}: padding leaves {}", t, tensor.name);
        }
      }
      const std::string defect = tiling_defect(rectangles, matrix.rows, matrix.row_bytes);
      if (!defect.empty()) return fmt::format("tp rank {}: writes to {}: {}", t, tensor.name, defect);
    }
    if (padding_seen != rank.padding.size())
      return fmt::format("tp rank {}: padding outside of every engine tensor", t);
  }
  return {};
}

/// Every byte of every parameter is part of as many shards as its rule says.
std::string prove_shards(const TransferPlan& plan) {
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    const ParameterRule& rule = plan.model.parameters[i];
    const std::uint64_t row_bytes = row_bytes_of(rule.info), times = multiplicity(rule, plan.tp);
    const Matrix matrix{rule.row * row_bytes, rule.rows, row_bytes};
    std::vector<Rectangle> all, distinct, originals;
    for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
      const Shard& s = plan.ranks[t].shards[i];
      const auto before = all.size();
      if (s.rows != 0 &&
          !append_rectangles(matrix, {s.parameter_offset, s.row_bytes, s.rows, s.parameter_pitch}, all)) {
        return fmt::format("tp rank {}: {} is read outside of its bytes", t, rule.info.name);
      }
      if (!plan.copy(t, i))
        originals.insert(originals.end(), all.begin() + static_cast<std::ptrdiff_t>(before), all.end());
    }
    std::sort(all.begin(), all.end());
    for (auto first = all.begin(); first != all.end();) {
      const auto last = std::upper_bound(first, all.end(), *first);
      if (static_cast<std::uint64_t>(last - first) != times) {
        return fmt::format("{}: a part is read {} times instead of {}", rule.info.name, last - first, times);
      }
      distinct.push_back(*first);
      first = last;
    }
    const std::string defect = tiling_defect(distinct, matrix.rows, matrix.row_bytes);
    if (!defect.empty()) return fmt::format("reads of {}: {}", rule.info.name, defect);
    std::sort(originals.begin(), originals.end());
    if (originals != distinct) return fmt::format("{}: copies are not told from what they copy", rule.info.name);
  }
  return {};
}

/// Where a side of a segment lies in the rows of `pitch` bytes that begin at `base`: the rectangle that it covers
/// there, or nothing when it does not follow them.
std::optional<Rectangle> place(std::uint64_t offset, std::uint64_t segment_pitch, const Segment& s, std::uint64_t base,
                               std::uint64_t pitch) {
  if (offset < base || pitch == 0 || s.row_bytes == 0 || (s.rows > 1 && segment_pitch != pitch)) return std::nullopt;
  return Rectangle{(offset - base) / pitch, (offset - base) % pitch, s.rows, s.row_bytes};
}

/// A segment brings its shard the bytes that the piece under it holds.
bool brings_what_it_says(const TransferPlan& plan, const Shard& shard, const Segment& s) {
  if (s.from >= plan.sources.ranks.size() || s.parameter_index != shard.parameter_index || shard.rows == 0)
    return false;
  const ParameterRule& rule = plan.model.parameters[s.parameter_index];
  const std::uint64_t pitch = row_bytes_of(rule.info), element = static_cast<std::uint64_t>(bits(rule.info.dtype)) / 8;
  const auto own = place(s.parameter_offset, s.parameter_pitch, s, 0, pitch);
  const auto in_shard = place(s.destination_offset, s.destination_pitch, s, shard.destination_offset,
                              shard.rows == 1 ? shard.row_bytes : shard.destination_pitch);
  if (!own || !in_shard || in_shard->row + s.rows > shard.rows || in_shard->column + s.row_bytes > shard.row_bytes ||
      own->row != shard.parameter_offset / pitch + in_shard->row ||
      own->column != shard.parameter_offset % pitch + in_shard->column) {
    return false;
  }
  const auto& pieces = plan.sources.ranks[s.from].pieces;
  const auto found = std::upper_bound(pieces.begin(), pieces.end(), s, [](const Segment& segment, const Piece& piece) {
    return std::pair(segment.parameter_index, segment.source_offset) < std::pair(piece.parameter_index, piece.offset);
  });
  if (found == pieces.begin()) return false;
  const Piece& piece = *std::prev(found);
  const auto in_piece = place(s.source_offset, s.source_pitch, s, piece.offset, piece.pitch);
  return piece.parameter_index == s.parameter_index && in_piece && in_piece->row + s.rows <= piece.slice.rows &&
         in_piece->column + s.row_bytes <= piece.slice.columns * element &&
         own->row == piece.slice.row + in_piece->row && own->column == piece.slice.column * element + in_piece->column;
}

/// Segments bring every byte of every shard exactly once, each from a trainer rank that has it.
std::string prove_segments(const TransferPlan& plan, const RankPlan& rank) {
  std::vector<Segment> segments = rank.schedule.segments;
  std::ranges::stable_sort(segments, {}, &Segment::parameter_index);
  std::uint64_t received = 0;
  auto next = segments.begin();
  for (const auto& shard : rank.shards) {
    const auto& name = plan.model.parameters[shard.parameter_index].info.name;
    std::vector<Rectangle> rectangles;
    for (; next != segments.end() && next->parameter_index <= shard.parameter_index; ++next) {
      if (!brings_what_it_says(plan, shard, *next)) return fmt::format("{} is brought from another place", name);
      rectangles.push_back(*place(next->destination_offset, next->destination_pitch, *next, shard.destination_offset,
                                  shard.rows == 1 ? shard.row_bytes : shard.destination_pitch));
      received += next->size_bytes();
    }
    if (shard.rows == 0) continue;
    const std::string defect = tiling_defect(rectangles, shard.rows, shard.row_bytes);
    if (!defect.empty()) return fmt::format("what brings {}: {}", name, defect);
  }
  if (next != segments.end()) return "a segment without a shard";
  if (received != rank.received_bytes) return fmt::format("{} bytes received, not {}", received, rank.received_bytes);
  return {};
}

/// A later replica takes what came, piece by piece and part by part, from where it was taken to.
bool relays_all(const RankPlan& rank) {
  const auto passed_on = [](const Segment& brought, const Segment& relayed) {
    return static_cast<const Shard&>(brought) == relayed && brought.from == relayed.from &&
           relayed.source_offset == brought.destination_offset && relayed.source_pitch == brought.destination_pitch;
  };
  const auto same = [](const Part& a, const Part& b) {
    return a.from == b.from && a.parameters == b.parameters && a.segments == b.segments;
  };
  return std::ranges::equal(rank.schedule.segments, rank.relay.segments, passed_on) &&
         std::ranges::equal(rank.schedule.whole, rank.relay.whole, same) &&
         std::ranges::equal(rank.schedule.single, rank.relay.single, same);
}

}  // namespace

std::string prove_coverage(const TransferPlan& plan) {
  std::string violation = prove_layout(plan.model, plan.sources);
  for (const auto proof : {prove_placement, prove_destinations, prove_shards}) {
    if (violation.empty()) violation = proof(plan);
  }
  if (!violation.empty()) return violation;
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    const RankPlan& rank = plan.ranks[t];
    violation = prove_segments(plan, rank);
    if (violation.empty()) violation = prove_schedule(rank.schedule, rank.shards.size(), plan.pack_bytes);
    if (violation.empty() && plan.dp > 1) {
      violation = relays_all(rank) ? prove_schedule(rank.relay, rank.shards.size(), plan.pack_bytes)
                                   : "what is passed on differs from the shards";
    }
    if (!violation.empty()) return fmt::format("tp rank {}: {}", t, violation);
  }
  return {};
}

}  // namespace weightcast
