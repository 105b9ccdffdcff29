#include "weightcast/tensor/matrix_layout.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "weightcast/core/bytes.hpp"

namespace weightcast {
namespace {

__extension__ using Wide = __int128;

std::uint64_t magnitude(std::int64_t stride) noexcept {
  return stride < 0 ? 0 - static_cast<std::uint64_t>(stride) : static_cast<std::uint64_t>(stride);
}

struct Dimension {
  std::uint64_t extent = 0;
  std::int64_t stride = 0;  // bytes
};

/// Elements at equal distances, ascending.
struct Line {
  std::uint64_t begin = 0, end = 0;  // bytes
  std::uint64_t step = 0, count = 0, width = 0;
  std::size_t matrix = 0;
};

void append_lines(std::vector<Line>& lines, const PlacedMatrix& matrix, std::size_t index) {
  const auto& layout = matrix.layout;
  std::uint64_t outer = layout.rows, inner = layout.columns;
  auto outer_stride = layout.row_stride, inner_stride = layout.column_stride;
  if (outer > 1 && magnitude(outer_stride) < magnitude(inner_stride)) {
    std::swap(outer, inner);
    std::swap(outer_stride, inner_stride);
  }
  const auto step = inner == 1 ? layout.element_bytes : magnitude(inner_stride);
  const auto lower = [](std::uint64_t address, std::int64_t stride, std::uint64_t count) {
    return stride < 0 ? address - (count - 1) * magnitude(stride) : address;
  };
  auto begin = lower(lower(matrix.address, inner_stride, inner), outer_stride, outer);
  if (outer == 1 || magnitude(outer_stride) == inner * step) {
    inner *= outer;
    outer = 1;
  }
  for (; outer > 0; --outer, begin += magnitude(outer_stride))
    lines.push_back(
        {begin, begin + (inner - 1) * step + layout.element_bytes, step, inner, layout.element_bytes, index});
}

/// x with a * x = 1 modulo `modulus`; they have no common divisor.
Wide inverse(Wide a, Wide modulus) noexcept {
  Wide x = 1, y = 0, b = modulus;
  while (b != 0) {
    const auto quotient = a / b;
    a = std::exchange(b, a - quotient * b);
    x = std::exchange(y, x - quotient * y);
  }
  return (x % modulus + modulus) % modulus;
}

/// Whether i * s - j * t = d for some i in [0, m) and j in [0, n).
bool solvable(Wide s, Wide m, Wide t, Wide n, Wide d) noexcept {
  const Wide g = std::gcd(static_cast<std::uint64_t>(s), static_cast<std::uint64_t>(t));
  if (d % g != 0) return false;
  s /= g;
  t /= g;
  d /= g;
  // j is an integer when i is one of these modulo t, and in range between two values of i.
  const auto residue = ((d % t + t) % t) * inverse(s % t, t) % t;
  const auto first = std::max<Wide>(0, d <= 0 ? 0 : (d + s - 1) / s), beyond = d + (n - 1) * t;
  if (beyond < 0) return false;
  const auto last = std::min(m - 1, beyond / s);
  return first + ((residue - first) % t + t) % t <= last;
}

bool meet(const Line& a, const Line& b) noexcept {
  const auto distance = static_cast<Wide>(b.begin) - static_cast<Wide>(a.begin);
  const Wide g = std::gcd(a.step, b.step);
  const Wide low = distance - static_cast<Wide>(a.width) + 1, high = distance + static_cast<Wide>(b.width) - 1;
  auto d = low - ((low % g + g) % g);
  if (d < low) d += g;
  for (; d <= high; d += g) {
    if (solvable(a.step, a.count, b.step, b.count, d)) return true;
  }
  return false;
}

}  // namespace

std::optional<Reach> reach_of(std::span<const std::uint64_t> shape, std::span<const std::int64_t> strides_bytes,
                              std::uint64_t element_bytes) noexcept {
  Reach reach{0, static_cast<std::int64_t>(element_bytes)};
  for (const auto extent : shape) {
    if (extent == 0) return Reach{};
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    std::int64_t last = 0;
    auto& edge = strides_bytes[i] < 0 ? reach.begin : reach.end;
    if (__builtin_mul_overflow(shape[i] - 1, strides_bytes[i], &last) || __builtin_add_overflow(edge, last, &edge))
      return std::nullopt;
  }
  return reach;
}

bool MatrixLayout::dense() const noexcept {
  return rows == 1 && column_stride == static_cast<std::int64_t>(element_bytes);
}

bool MatrixLayout::aligned() const noexcept {
  return (magnitude(row_stride) | magnitude(column_stride)) % element_bytes == 0;
}

bool MatrixLayout::elements_apart() const noexcept {
  const auto a = magnitude(row_stride), b = magnitude(column_stride);
  if ((rows > 1 && a == 0) || (columns > 1 && b == 0)) return false;
  if (rows <= 1 || columns <= 1) return true;
  // Two are in one place when some rows' way back is some columns' way: first b / g rows and a / g columns.
  const auto g = std::gcd(a, b);
  return b / g >= rows || a / g >= columns;
}

std::optional<MatrixLayout> layout_of(const TensorInfo& info, std::span<const std::int64_t> strides_bytes) noexcept {
  const auto width = element_bytes(info.dtype);
  const auto elements = info.elements();
  if (!elements || !info.size_bytes() || width == 0) return std::nullopt;
  const MatrixLayout dense{1, *elements, 0, static_cast<std::int64_t>(width), width};
  if (strides_bytes.empty()) return dense;
  if (strides_bytes.size() != info.shape.size() || !reach_of(info.shape, strides_bytes, width)) return std::nullopt;
  if (*elements <= 1) return dense;
  std::vector<Dimension> dimensions;  // outermost first, as few as reach the same
  for (std::size_t i = 0; i < info.shape.size(); ++i) {
    if (info.shape[i] == 1) continue;
    const Dimension inner{info.shape[i], strides_bytes[i]};
    std::int64_t end = 0;
    if (!dimensions.empty() && !__builtin_mul_overflow(inner.extent, inner.stride, &end) &&
        dimensions.back().stride == end) {
      dimensions.back() = {dimensions.back().extent * inner.extent, inner.stride};
    } else {
      dimensions.push_back(inner);
    }
  }
  if (dimensions.size() > 2) return std::nullopt;
  const auto& columns = dimensions.back();
  if (dimensions.size() == 1) return MatrixLayout{1, columns.extent, 0, columns.stride, width};
  return MatrixLayout{dimensions[0].extent, columns.extent, dimensions[0].stride, columns.stride, width};
}

std::vector<std::pair<std::size_t, std::size_t>> overlapping(std::span<const PlacedMatrix> matrices) {
  std::vector<Line> lines;
  std::vector<Line> boxes;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const auto& layout = matrices[i].layout;
    if (layout.columns == 0) continue;
    const std::uint64_t shape[] = {layout.rows, layout.columns};
    const std::int64_t strides[] = {layout.row_stride, layout.column_stride};
    const auto reach = reach_of(shape, strides, layout.element_bytes).value();
    boxes.push_back({matrices[i].address + static_cast<std::uint64_t>(reach.begin),
                     matrices[i].address + static_cast<std::uint64_t>(reach.end), 0, 0, 0, i});
  }
  const auto by_begin = [](const Line& a, const Line& b) { return a.begin < b.begin; };
  std::sort(boxes.begin(), boxes.end(), by_begin);
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < boxes.size(); ++i) {  // only those that touch another box need a closer look
    const bool with_next = i + 1 < boxes.size() && boxes[i + 1].begin < std::max(end, boxes[i].end);
    if (boxes[i].begin < end || with_next) append_lines(lines, matrices[boxes[i].matrix], boxes[i].matrix);
    end = std::max(end, boxes[i].end);
  }
  std::sort(lines.begin(), lines.end(), by_begin);
  std::set<std::pair<std::size_t, std::size_t>> found;
  std::vector<Line> open;
  for (const auto& line : lines) {
    std::erase_if(open, [&](const Line& other) { return other.end <= line.begin; });
    for (const auto& other : open) {
      const auto pair = std::minmax(line.matrix, other.matrix);
      if (line.matrix != other.matrix && !found.contains(pair) && meet(other, line)) found.insert(pair);
    }
    open.push_back(line);
  }
  return {found.begin(), found.end()};
}

}  // namespace weightcast
