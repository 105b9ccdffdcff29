#pragma once

#include <algorithm>
#include <cstdint>

namespace weightcast {

/// A tensor seen as a matrix: the last dimension is columns, all others together are rows ([n] is n rows of 1 column, a
/// scalar 1 x 1, [experts, out, in] is experts x out rows of `in` columns). Sharding rules cut matrices only.
struct MatrixShape {
  std::uint64_t rows = 1, columns = 1;
  bool operator==(const MatrixShape&) const = default;
};

/// A rectangle of a matrix, in elements.
struct Slice {
  std::uint64_t row = 0, column = 0;    ///< first row and column
  std::uint64_t rows = 0, columns = 0;  ///< extent; zero is legal and means nothing
  bool operator==(const Slice&) const = default;

  bool empty() const noexcept { return rows == 0 || columns == 0; }
  bool within(const MatrixShape& shape) const noexcept {
    return row <= shape.rows && rows <= shape.rows - row && column <= shape.columns &&
           columns <= shape.columns - column;
  }
};

/// What two rectangles of one matrix have in common; empty when nothing.
inline Slice intersection(const Slice& a, const Slice& b) noexcept {
  const auto row = std::max(a.row, b.row), column = std::max(a.column, b.column);
  const auto end_row = std::min(a.row + a.rows, b.row + b.rows),
             end_column = std::min(a.column + a.columns, b.column + b.columns);
  if (row >= end_row || column >= end_column) return {};
  return {row, column, end_row - row, end_column - column};
}

}  // namespace weightcast
