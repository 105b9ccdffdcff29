#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "harness/random_model.hpp"
#include "weightcast/plan/source_layout.hpp"

/// Random layouts of trainers, for properties of plans.
namespace weightcast::harness {

inline constexpr std::uint64_t most_trainers = 8;

/// Cuts a rectangle in two, and the halves again, up to `depth` times.
inline void cut_at_random(const Slice& slice, std::uint64_t depth, const std::function<void(const Slice&)>& take) {
  const auto way = depth == 0 ? 0 : number(0, 3);
  auto first = slice, second = slice;
  if (way == 1 && slice.rows > 1) {
    first.rows = number(1, slice.rows - 1);
    second.row += first.rows;
    second.rows -= first.rows;
  } else if (way == 2 && slice.columns > 1) {
    first.columns = number(1, slice.columns - 1);
    second.column += first.columns;
    second.columns -= first.columns;
  } else {
    return take(slice);
  }
  cut_at_random(first, depth - 1, take);
  cut_at_random(second, depth - 1, take);
}

/// Of every parameter random rectangles, each on one rank or on several.
inline std::vector<HeldRectangle> random_rectangles(const Model& model, std::uint64_t trainers) {
  std::vector<HeldRectangle> rectangles;
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    cut_at_random(section_of(model.parameters[p]), 3, [&](const Slice& slice) {
      const auto first = number(0, trainers - 1), holders = number(0, 3) == 0 ? number(1, trainers) : 1;
      for (std::uint64_t i = 0; i < holders; ++i) rectangles.push_back({(first + i) % trainers, p, slice});
    });
  }
  return rectangles;
}

/// The same pieces with gaps between them and, some of them, in wider rows: no layout that is made here has that.
inline void loosen(SourceLayout& layout, const Model& model) {
  for (auto& rank : layout.ranks) {
    rank.size_bytes = 0;
    for (auto& piece : rank.pieces) {
      const auto row_bytes = piece.slice.columns * element_bytes(model.parameters[piece.parameter_index].info.dtype);
      piece.offset = rank.size_bytes + number(0, 2);
      piece.pitch = row_bytes + (number(0, 3) == 0 ? number(1, 9) : 0);
      rank.size_bytes = piece.offset + (piece.slice.rows - 1) * piece.pitch + row_bytes;
    }
  }
}

/// Of any kind.
inline SourceLayout random_layout(const Model& model) {
  const auto kind = *rc::gen::element(LayoutKind::whole, LayoutKind::fsdp, LayoutKind::tp, LayoutKind::custom);
  auto trainers = number(1, most_trainers);
  if (kind == LayoutKind::tp) {
    const auto possible = possible_tp(model);
    trainers = possible[number(0, possible.size() - 1)];
  }
  RC_TAG(std::string(name(kind)));
  if (kind == LayoutKind::custom) return custom_layout(model, trainers, random_rectangles(model, trainers));
  return make_layout(kind, model, trainers);
}

}  // namespace weightcast::harness
