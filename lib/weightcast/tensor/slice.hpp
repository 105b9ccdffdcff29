#pragma once

#include <cstdint>

namespace weightcast {

/// A tensor seen as a matrix: the first dimension is rows, all others together are columns ([n] is n rows of 1 column,
/// a scalar 1 x 1). Sharding rules cut matrices only.
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

}  // namespace weightcast
