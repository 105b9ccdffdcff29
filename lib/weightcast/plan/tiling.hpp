#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"

/// The geometry of the proofs: rectangles of bytes in a matrix, so that a column shard of thousands of rows costs no
/// more than one of a single row. Only proofs use it: what makes a plan has arithmetic of its own.
namespace weightcast {

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
bool append_rectangles(const Matrix& matrix, const Runs& runs, std::vector<Rectangle>& rectangles);

/// What is wrong with `rectangles`, all inside the matrix, as a cover that has every byte exactly once; empty when
/// nothing.
std::string tiling_defect(const std::vector<Rectangle>& rectangles, std::uint64_t rows, std::uint64_t row_bytes);

/// True when the ranges are disjoint and inside a region of `region_bytes`.
bool ranges_fit(std::vector<ByteRange> ranges, std::uint64_t region_bytes);

/// Bytes from row to row of a parameter.
std::uint64_t row_bytes_of(const TensorInfo& info);

}  // namespace weightcast
