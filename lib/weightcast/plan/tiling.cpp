#include "weightcast/plan/tiling.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "weightcast/core/bytes.hpp"

namespace weightcast {

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

// How often a point is covered is, modulo 2, fixed by the corners: where every corner but the four of the matrix
// occurs an even number of times, every point is covered an odd number of times, hence at least once; and with areas
// that add up to the matrix, exactly once.
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

std::uint64_t row_bytes_of(const TensorInfo& info) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(bits(info.dtype)) / 8;
  return info.shape.size() < 2 ? bytes : bytes * info.shape.back();
}

}  // namespace weightcast
