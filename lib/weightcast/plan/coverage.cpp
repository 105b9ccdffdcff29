#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
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

/// True when the ranges are disjoint and inside a region of `region_bytes`.
bool ranges_fit(std::vector<ByteRange> ranges, std::uint64_t region_bytes) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  std::uint64_t end = 0;
  for (const auto& range : ranges) {
    if (range.offset < end || range.offset > region_bytes || range.size_bytes > region_bytes - range.offset)
      return false;
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
    const Matrix matrix{0, rule.info.size_bytes().value() / row_bytes, row_bytes};
    std::vector<Rectangle> all, distinct;
    for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
      const Shard& s = plan.ranks[t].shards[i];
      if (s.rows != 0 &&
          !append_rectangles(matrix, {s.parameter_offset, s.row_bytes, s.rows, s.parameter_pitch}, all)) {
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

/// Segments bring every byte of every shard exactly once, from where it is.
std::string prove_segments(const TransferPlan& plan, const RankPlan& rank) {
  const auto& segments = rank.schedule.segments;
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

/// A later replica takes every shard from where it takes it to.
bool relays_all(const RankPlan& rank) {
  std::size_t next = 0;
  for (const auto& shard : rank.shards) {
    if (shard.rows == 0) continue;
    const auto& segments = rank.relay.segments;
    if (next == segments.size() || static_cast<const Shard&>(segments[next]) != shard ||
        segments[next].source_offset != shard.destination_offset ||
        segments[next].source_pitch != shard.destination_pitch) {
      return false;
    }
    ++next;
  }
  const auto same = [](const Part& a, const Part& b) { return a.parameters == b.parameters; };
  return next == rank.relay.segments.size() && std::ranges::equal(rank.relay.whole, rank.schedule.whole, same);
}

}  // namespace

std::string prove_layout(const Model& model, const SourceLayout& layout) {
  std::vector<std::vector<Rectangle>> rectangles(model.parameters.size());
  for (std::size_t from = 0; from < layout.ranks.size(); ++from) {
    std::vector<ByteRange> ranges;
    std::size_t previous = 0;
    for (const auto& piece : layout.ranks[from].pieces) {
      if (piece.parameter_index < previous || piece.parameter_index >= model.parameters.size())
        return fmt::format("trainer rank {}: pieces are out of order", from);
      previous = piece.parameter_index;
      const TensorInfo& info = model.parameters[previous].info;
      const auto& [row, column, rows, columns] = piece.slice;
      if (piece.slice.empty() || !piece.slice.within(matrix_of(info)))
        return fmt::format("trainer rank {}: a piece of {} is not in it", from, info.name);
      const std::uint64_t element = static_cast<std::uint64_t>(bits(info.dtype)) / 8, row_bytes = columns * element;
      const auto above = checked_multiply(rows - 1, piece.pitch);
      const auto extent = above ? checked_add(*above, row_bytes) : std::nullopt;
      if (!extent || piece.pitch < row_bytes)
        return fmt::format("trainer rank {}: rows of {} overlap", from, info.name);
      ranges.push_back({piece.offset, *extent});
      rectangles[previous].push_back({row, column * element, rows, row_bytes});
    }
    if (!ranges_fit(std::move(ranges), layout.ranks[from].size_bytes))
      return fmt::format("trainer rank {}: parameters overlap or leave the source region", from);
  }
  for (std::size_t i = 0; i < rectangles.size(); ++i) {
    const TensorInfo& info = model.parameters[i].info;
    const auto size = info.size_bytes();
    if (!size || *size == 0 || row_bytes_of(info) == 0) return fmt::format("{}: not a size in whole bytes", info.name);
    const std::string defect = tiling_defect(rectangles[i], *size / row_bytes_of(info), row_bytes_of(info));
    if (!defect.empty()) return fmt::format("trainer ranks have of {}: {}", info.name, defect);
  }
  return {};
}

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
