#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/plan/source_layout.hpp"
#include "weightcast/plan/tiling.hpp"

// Trusts nothing that a layout's maker computed: it takes the parameter table and asks of each parameter whether the
// rectangles, those that ranks share counted once, are a tiling of it.

namespace weightcast {
namespace {

/// What a trainer rank has of the parameter at hand.
struct Held {
  Slice slice;
  std::size_t from = 0;
};

auto corner_of(const Held& held) {
  return std::tuple(held.slice.row, held.slice.column, held.slice.rows, held.slice.columns);
}

std::string text(const Slice& slice) {
  return fmt::format("rows [{}, {}) x columns [{}, {})", slice.row, slice.row + slice.rows, slice.column,
                     slice.column + slice.columns);
}

/// Two that may not be: of one rank, or not the same rectangle. Empty when there are none. Sorted by corner_of().
std::string overlap(const std::vector<Held>& held) {
  for (auto a = held.begin(); a != held.end(); ++a) {
    for (auto b = a + 1; b != held.end() && b->slice.row < a->slice.row + a->slice.rows; ++b) {
      if (intersection(a->slice, b->slice).empty()) continue;
      if (a->from == b->from && a->slice == b->slice)
        return fmt::format("trainer rank {} has {} twice", a->from, text(a->slice));
      if (a->from == b->from)
        return fmt::format("trainer rank {} has both {} and {}", a->from, text(a->slice), text(b->slice));
      if (a->slice != b->slice)
        return fmt::format("trainer rank {} has {}, trainer rank {} has {}: neither the same nor disjoint", a->from,
                           text(a->slice), b->from, text(b->slice));
    }
  }
  return {};
}

/// What is wrong with a parameter of which trainer ranks have that, or nothing.
std::string defect_of(const ParameterRule& rule, std::vector<Held> held) {
  const auto& info = rule.info;
  const auto size = info.size_bytes();
  const auto row_bytes = row_bytes_of(info);
  if (!size || *size == 0 || row_bytes == 0) return "not a size in whole bytes";
  if (rule.rows == 0 || *size / row_bytes < rule.rows || *size / row_bytes - rule.rows < rule.row)
    return "rows beyond the tensor";
  std::ranges::stable_sort(held, {}, corner_of);
  const auto element = static_cast<std::uint64_t>(bits(info.dtype)) / 8;
  std::vector<Rectangle> distinct;
  std::uint64_t elements = 0;
  bool twice = false;
  for (auto h = held.begin(); h != held.end(); ++h) {
    const bool shared = h != held.begin() && (h - 1)->slice == h->slice;
    twice = twice || (shared && (h - 1)->from == h->from);
    if (shared) continue;
    if (h->slice.row < rule.row) return fmt::format("trainer rank {} has rows of another parameter", h->from);
    distinct.push_back({h->slice.row - rule.row, h->slice.column * element, h->slice.rows, h->slice.columns * element});
    elements += h->slice.rows * h->slice.columns;
  }
  auto defect = tiling_defect(distinct, rule.rows, row_bytes);
  if (defect.empty() && !twice) return {};
  if (auto found = overlap(held); !found.empty()) return found;
  if (held.empty()) return "no trainer rank has any of it";
  const auto all = rule.rows * row_bytes / element;
  return elements < all ? fmt::format("no trainer rank has {} of its {} elements", all - elements, all) : defect;
}

/// What is wrong with one rank's region. What can be held is appended to `held`, by parameter.
std::string region_defect(const Model& model, const SourceRegion& region, std::size_t from,
                          std::vector<std::vector<Held>>& held) {
  std::vector<ByteRange> ranges;
  std::pair<std::size_t, std::uint64_t> previous;
  for (const auto& piece : region.pieces) {
    const std::pair at(piece.parameter_index, piece.offset);
    if (at < previous || piece.parameter_index >= model.parameters.size()) return "pieces are out of order";
    previous = at;
    const TensorInfo& info = model.parameters[piece.parameter_index].info;
    if (piece.slice.empty() || !piece.slice.within(matrix_of(info)))
      return fmt::format("a piece of {} is not in it", info.name);
    const auto row_bytes = piece.slice.columns * (static_cast<std::uint64_t>(bits(info.dtype)) / 8);
    const auto above = checked_multiply(piece.slice.rows - 1, piece.pitch);
    const auto extent = above ? checked_add(*above, row_bytes) : std::nullopt;
    if (!extent || piece.pitch < row_bytes) return fmt::format("rows of {} overlap", info.name);
    ranges.push_back({piece.offset, *extent});
    held[piece.parameter_index].push_back({piece.slice, from});
  }
  return ranges_fit(std::move(ranges), region.size_bytes) ? "" : "parameters overlap or leave the source region";
}

std::vector<std::string> defects_of(const Model& model, const SourceLayout& layout) {
  std::vector<std::string> defects;
  std::vector<std::vector<Held>> held(model.parameters.size());
  for (std::size_t from = 0; from < layout.ranks.size(); ++from) {
    const auto defect = region_defect(model, layout.ranks[from], from, held);
    if (!defect.empty()) defects.push_back(fmt::format("trainer rank {}: {}", from, defect));
  }
  if (!defects.empty()) return defects;  // who has what is not known
  for (std::size_t p = 0; p < held.size(); ++p) {
    const auto& rule = model.parameters[p];
    const auto defect = defect_of(rule, std::move(held[p]));
    if (!defect.empty()) defects.push_back(fmt::format("{}: {}", rule.info.name, defect));
  }
  return defects;
}

}  // namespace

std::string prove_layout(const Model& model, const SourceLayout& layout) {
  const auto defects = defects_of(model, layout);
  return defects.empty() ? "" : defects.front();
}

void check_layout(const Model& model, const SourceLayout& layout) {
  const auto defects = defects_of(model, layout);
  if (defects.empty()) return;
  throw Error(ExitCode::bad_data, fmt::format("the source layout cannot be used:\n  {}", list_lines(defects)),
              "every element of every parameter must be on a trainer rank, and on several only as part of the same "
              "rectangle");
}

}  // namespace weightcast
