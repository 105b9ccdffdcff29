#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/plan/transfer_plan.hpp"

// The proof trusts nothing that make_plan() computed and shares no code with it: it takes the parameter table (names,
// shapes, kinds) and the regions, and asks whether the segments are a tiling of them. Everything is a rectangle of
// bytes in a matrix, so a column shard of thousands of rows costs no more than one of a single row.

namespace weightcast {
namespace {

/// Rows, and bytes within a row.
struct Rectangle {
  std::uint64_t row = 0, column = 0, rows = 0, columns = 0;
  auto operator<=>(const Rectangle&) const = default;
};

/// A region's part that holds a matrix of `rows` x `row_bytes` at `offset`.
struct Matrix {
  std::uint64_t offset = 0, rows = 0, row_bytes = 0;
};

/// One side of a segment.
struct Runs {
  std::uint64_t offset = 0, run_bytes = 0, runs = 0, pitch = 0;
};

/// Appends the rectangles of `matrix` that `runs` touch; false when they leave it or do not follow its rows.
bool append_rectangles(const Matrix& matrix, const Runs& runs, std::vector<Rectangle>& rectangles) {
  const auto total = checked_multiply(runs.run_bytes, runs.runs);
  if (!total || *total == 0 || runs.offset < matrix.offset) return false;
  std::uint64_t begin = runs.offset - matrix.offset, left = *total;
  const std::uint64_t size = matrix.rows * matrix.row_bytes, column = begin % matrix.row_bytes;
  if (begin > size || left > size - begin) return false;
  if (runs.runs > 1 && runs.pitch != runs.run_bytes) {
    const std::uint64_t row = begin / matrix.row_bytes;
    if (runs.pitch != matrix.row_bytes || runs.run_bytes > matrix.row_bytes - column || runs.runs > matrix.rows - row) {
      return false;
    }
    rectangles.push_back({row, column, runs.runs, runs.run_bytes});
    return true;
  }
  // One run: the end of a row, whole rows, the beginning of a row.
  const auto take = [&](std::uint64_t rows, std::uint64_t columns) {
    if (rows * columns == 0) return;
    rectangles.push_back({begin / matrix.row_bytes, begin % matrix.row_bytes, rows, columns});
    begin += rows * columns;
    left -= rows * columns;
  };
  if (column > 0) take(1, std::min(left, matrix.row_bytes - column));
  take(left / matrix.row_bytes, matrix.row_bytes);
  take(1, left);
  return true;
}

/// What is wrong with `rectangles`, all inside the matrix, as a cover that has every byte exactly once; empty when
/// nothing.
///
/// How often a point is covered is, modulo 2, fixed by the corners: where every corner but the four of the matrix
/// occurs an even number of times, every point is covered an odd number of times, hence at least once; and with areas
/// that add up to the matrix, exactly once.
std::string tiling_defect(const std::vector<Rectangle>& rectangles, std::uint64_t rows, std::uint64_t row_bytes) {
  using Point = std::pair<std::uint64_t, std::uint64_t>;
  const std::uint64_t size = rows * row_bytes;
  std::uint64_t area = 0;
  std::vector<Point> corners;
  for (const auto& r : rectangles) {
    const auto sum = checked_add(area, r.rows * r.columns);
    if (!sum) return "overlaps beyond measure";
    area = *sum;
    for (const auto row : {r.row, r.row + r.rows}) {
      for (const auto column : {r.column, r.column + r.columns}) corners.emplace_back(row, column);
    }
  }
  if (area < size) return fmt::format("{} of {} bytes are left out", size - area, size);
  if (area > size) return fmt::format("{} bytes too many for {}", area - size, size);
  std::sort(corners.begin(), corners.end());
  std::vector<Point> odd;
  for (const auto& corner : corners) {
    if (!odd.empty() && odd.back() == corner) {
      odd.pop_back();
    } else {
      odd.push_back(corner);
    }
  }
  const std::vector<Point> expected{{0, 0}, {0, row_bytes}, {rows, 0}, {rows, row_bytes}};
  return odd == expected ? "" : "some bytes are taken twice and others left out";
}

/// True when the ranges are aligned, disjoint and inside a region of `region_bytes`.
bool ranges_fit(std::vector<ByteRange> ranges, std::uint64_t region_bytes) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  std::uint64_t end = 0;
  for (const auto& range : ranges) {
    if (range.offset < end || range.offset % TransferPlan::alignment_bytes != 0 || range.offset > region_bytes ||
        range.size_bytes > region_bytes - range.offset) {
      return false;
    }
    end = range.offset + range.size_bytes;
  }
  return true;
}

/// Bytes from row to row of a parameter.
std::uint64_t row_bytes_of(const TensorInfo& info) {
  std::uint64_t bytes = static_cast<std::uint64_t>(bits(info.dtype)) / 8;
  for (std::size_t i = 1; i < info.shape.size(); ++i) bytes *= info.shape[i];
  return bytes;
}

/// How many ranks must read every byte of the parameter.
std::uint64_t multiplicity(const ParameterRule& rule, std::uint64_t tp) {
  if (rule.kind == ShardKind::replicated) return tp;
  return rule.kind == ShardKind::kv_heads && tp > rule.units ? tp / rule.units : 1;
}

std::string prove_layout(const TransferPlan& plan) {
  const auto& parameters = plan.model.parameters;
  if (plan.ranks.size() != plan.tp) return fmt::format("{} ranks in a plan for tp {}", plan.ranks.size(), plan.tp);
  if (plan.source_offsets.size() != parameters.size()) return "a parameter has no place in the source region";
  std::vector<ByteRange> ranges;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto size = parameters[i].info.size_bytes();
    if (!size || *size == 0 || row_bytes_of(parameters[i].info) == 0) {
      return fmt::format("{}: not a size in whole bytes", parameters[i].info.name);
    }
    ranges.push_back({plan.source_offsets[i], *size});
  }
  if (!ranges_fit(std::move(ranges), plan.source_bytes)) return "parameters overlap or leave the source region";

  ranges.clear();
  std::vector<std::size_t> placed(parameters.size(), 0);
  for (const auto& tensor : plan.engine_tensors) {
    const auto size = TensorInfo{tensor.name, tensor.dtype, {tensor.shape.rows, tensor.shape.columns}}.size_bytes();
    if (!size || *size == 0 || *size != tensor.size_bytes) return fmt::format("{}: wrong size", tensor.name);
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
    if (plan.ranks[t].shards.size() != parameters.size())
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
        const Segment& s = rank.shards[i];
        if (s.rows == 0) continue;
        const std::string& parameter = plan.model.parameters[i].info.name;
        if (!append_rectangles(matrix, {s.destination, s.row_bytes, s.rows, s.destination_pitch}, rectangles)) {
          return fmt::format("tp rank {}: {} is written outside of {}", t, parameter, tensor.name);
        }
        if (s.destination < previous)
          return fmt::format("tp rank {}: {} lies before its part of {}", t, parameter, tensor.name);
        previous = s.destination;
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

/// Every byte of every parameter is read as often as its rule says.
std::string prove_sources(const TransferPlan& plan) {
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    const ParameterRule& rule = plan.model.parameters[i];
    const std::uint64_t row_bytes = row_bytes_of(rule.info), times = multiplicity(rule, plan.tp);
    const Matrix matrix{plan.source_offsets[i], rule.info.size_bytes().value() / row_bytes, row_bytes};
    std::vector<Rectangle> all, distinct;
    for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
      const Segment& s = plan.ranks[t].shards[i];
      if (s.rows != 0 && !append_rectangles(matrix, {s.source, s.row_bytes, s.rows, s.source_pitch}, all)) {
        return fmt::format("tp rank {}: {} is read outside of its bytes", t, rule.info.name);
      }
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
  }
  return {};
}

/// Each move is a sequence of whole shards that continue each other, and no shard is left.
std::string prove_moves(const RankPlan& rank) {
  std::vector<Segment> shards;
  for (const auto& shard : rank.shards) {
    if (shard.rows != 0) shards.push_back(shard);
  }
  std::sort(shards.begin(), shards.end(), [](const auto& a, const auto& b) { return a.destination < b.destination; });
  auto next = shards.begin();
  std::uint64_t received = 0;
  for (const auto& move : rank.moves) {
    const bool one_run = move.contiguous_source() && move.contiguous_destination();
    const auto size = checked_multiply(move.row_bytes, move.rows);
    if (!size || *size == 0) return "an empty or endless move";
    std::uint64_t source = move.source, destination = move.destination, left = *size;
    while (left > 0) {
      if (next == shards.end()) return "a move without a shard";
      const Segment& shard = *next++;
      const bool same_form = one_run ? shard.contiguous_source() && shard.contiguous_destination()
                                     : shard.row_bytes == move.row_bytes &&
                                           (shard.rows == 1 || (shard.source_pitch == move.source_pitch &&
                                                                shard.destination_pitch == move.destination_pitch));
      if (!same_form || shard.source != source || shard.destination != destination || shard.size_bytes() > left) {
        return fmt::format("the move to byte {} of the slot differs from its shards", move.destination);
      }
      source += one_run ? shard.size_bytes() : shard.rows * move.source_pitch;
      destination += one_run ? shard.size_bytes() : shard.rows * move.destination_pitch;
      left -= shard.size_bytes();
      received += shard.size_bytes();
    }
  }
  if (next != shards.end()) return fmt::format("no move for the shard at byte {} of the slot", next->destination);
  if (received != rank.received_bytes) return fmt::format("{} bytes received, not {}", received, rank.received_bytes);
  return {};
}

}  // namespace

std::string prove_coverage(const TransferPlan& plan) {
  for (const auto proof : {prove_layout, prove_destinations, prove_sources}) {
    std::string violation = proof(plan);
    if (!violation.empty()) return violation;
  }
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    const std::string violation = prove_moves(plan.ranks[t]);
    if (!violation.empty()) return fmt::format("tp rank {}: {}", t, violation);
  }
  return {};
}

}  // namespace weightcast
