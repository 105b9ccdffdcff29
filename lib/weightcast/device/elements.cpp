#include "weightcast/device/elements.hpp"

#include <algorithm>
#include <cstring>

namespace weightcast {
namespace {

template <NarrowFloat to, WideFloat from>
void narrow_all(std::byte* __restrict destination, const std::byte* __restrict source, std::uint64_t count) noexcept {
  constexpr auto width = width_bytes(from);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, source + width * i, width);
    const std::uint16_t narrowed = narrow(to, widen(from, bits));
    std::memcpy(destination + 2 * i, &narrowed, 2);
  }
}

template <NarrowFloat to>
void narrow_all(std::byte* destination, const std::byte* source, std::uint64_t count, WideFloat from) noexcept {
  switch (from) {
    case WideFloat::f32: return narrow_all<to, WideFloat::f32>(destination, source, count);
    case WideFloat::bf16: return narrow_all<to, WideFloat::bf16>(destination, source, count);
    case WideFloat::f16: return narrow_all<to, WideFloat::f16>(destination, source, count);
  }
}

/// Copies `count` elements of a row.
template <std::size_t width>
void copy_run(std::byte* to, std::int64_t to_stride, const std::byte* from, std::int64_t from_stride,
              std::uint64_t count) noexcept {
  if (to_stride == from_stride && to_stride == static_cast<std::int64_t>(width)) {
    std::memcpy(to, from, width * count);
    return;
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    std::memcpy(to, from, width);
    to += to_stride;
    from += from_stride;
  }
}

/// Calls `copy(offset in the matrix, offset in what is dense, count)` for each row's part, offsets in bytes.
template <typename Copy>
void for_each_run(const StridedElements& elements, const Copy& copy) noexcept {
  std::uint64_t row = elements.first / elements.columns, column = elements.first % elements.columns;
  for (std::uint64_t done = 0; done < elements.count; ++row, column = 0) {
    const auto count = std::min(elements.columns - column, elements.count - done);
    const auto offset = static_cast<std::int64_t>(row) * elements.row_stride +
                        static_cast<std::int64_t>(column) * elements.column_stride;
    copy(offset, done * elements.element_bytes, count);
    done += count;
  }
}

template <std::size_t width>
void gather_all(const StridedElements& elements, std::byte* destination, const std::byte* matrix) noexcept {
  for_each_run(elements, [&](std::int64_t offset, std::uint64_t at, std::uint64_t count) {
    copy_run<width>(destination + at, width, matrix + offset, elements.column_stride, count);
  });
}

template <std::size_t width>
void scatter_all(const StridedElements& elements, std::byte* matrix, const std::byte* source) noexcept {
  for_each_run(elements, [&](std::int64_t offset, std::uint64_t at, std::uint64_t count) {
    copy_run<width>(matrix + offset, elements.column_stride, source + at, width, count);
  });
}

}  // namespace

void narrow(NarrowFloat to, std::byte* destination, const std::byte* source, std::uint64_t count,
            WideFloat from) noexcept {
  to == NarrowFloat::bf16 ? narrow_all<NarrowFloat::bf16>(destination, source, count, from)
                          : narrow_all<NarrowFloat::f16>(destination, source, count, from);
}

void gather(const StridedElements& elements, std::byte* destination, const std::byte* matrix) noexcept {
  switch (elements.element_bytes) {
    case 1: return gather_all<1>(elements, destination, matrix);
    case 2: return gather_all<2>(elements, destination, matrix);
    case 4: return gather_all<4>(elements, destination, matrix);
    default: return gather_all<8>(elements, destination, matrix);
  }
}

void scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source) noexcept {
  switch (elements.element_bytes) {
    case 1: return scatter_all<1>(elements, matrix, source);
    case 2: return scatter_all<2>(elements, matrix, source);
    case 4: return scatter_all<4>(elements, matrix, source);
    default: return scatter_all<8>(elements, matrix, source);
  }
}

}  // namespace weightcast
