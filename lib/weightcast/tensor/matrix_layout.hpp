#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "weightcast/tensor/tensor_info.hpp"

/// Tensors where somebody else keeps them: any strides, also none and negative ones, and what they say about memory.
namespace weightcast {

/// The bytes that a tensor's elements are in, counted from its first element: [begin, end).
struct Reach {
  std::int64_t begin = 0, end = 0;
};
/// Of a tensor with a stride in bytes for each dimension; {0, 0} without elements. Nothing when it does not fit 63
/// bits.
std::optional<Reach> reach_of(std::span<const std::uint64_t> shape, std::span<const std::int64_t> strides_bytes,
                              std::uint64_t element_bytes) noexcept;

/// Where a matrix's elements are: (r, c) is r * row_stride + c * column_stride bytes behind the first. With as few rows
/// as possible: what one stride reaches is one row, whatever the tensor's shape.
struct MatrixLayout {
  std::uint64_t rows = 1, columns = 0;
  std::int64_t row_stride = 0, column_stride = 0;
  std::uint64_t element_bytes = 1;

  bool operator==(const MatrixLayout&) const = default;
  /// Element after element, without gaps.
  bool dense() const noexcept;
  /// Every element is at a multiple of its size from the first one.
  bool aligned() const noexcept;
  /// No two elements share memory. For aligned ones.
  bool elements_apart() const noexcept;
};

/// Of a tensor of whole bytes; no strides: dense, in row-major order. Nothing when there is not a stride for each
/// dimension, when it reaches too far (see reach_of()), or when it takes more than two strides to say where its
/// elements are: of three dimensions one must continue where its neighbour ends.
std::optional<MatrixLayout> layout_of(const TensorInfo& info, std::span<const std::int64_t> strides_bytes) noexcept;

/// A matrix in memory; aligned, and its elements are apart.
struct PlacedMatrix {
  std::uint64_t address = 0;  ///< of its first element, a multiple of the element's size
  MatrixLayout layout;
};
/// The pairs of matrices (indices, the lower first) of which an element of one shares memory with one of the other.
/// Exact, also for those that interleave. Takes n log n for n rows of those whose address ranges overlap.
std::vector<std::pair<std::size_t, std::size_t>> overlapping(std::span<const PlacedMatrix> matrices);

}  // namespace weightcast
