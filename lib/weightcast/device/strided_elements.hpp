#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

/// Elements [first, first + count) of a matrix, counted row after row: (r, c) is r * row_stride + c * column_stride
/// bytes behind the matrix's first element. Strides may be negative or 0; an element has 1, 2, 4 or 8 bytes.
struct StridedElements {
  std::uint64_t columns = 1, first = 0, count = 0;
  std::int64_t row_stride = 0, column_stride = 0;
  std::uint64_t element_bytes = 1;
};

/// Copies them to a dense destination, and from a dense source, on the host; any alignment, no overlap. For device
/// memory: gpu::gather() and gpu::scatter().
void gather(const StridedElements& elements, std::byte* destination, const std::byte* matrix) noexcept;
void scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source) noexcept;

}  // namespace weightcast
