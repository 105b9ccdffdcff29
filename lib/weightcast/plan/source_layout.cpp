#include "weightcast/plan/source_layout.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/scale_rules.hpp"

namespace weightcast {
namespace {

SourceLayout regions(std::uint64_t trainers) {
  if (trainers == 0) throw Error(ExitCode::config, "there must be 1 trainer rank or more");
  SourceLayout layout;
  layout.ranks.resize(trainers);
  return layout;
}

/// Behind what the region has.
void append(SourceRegion& region, const Model& model, std::size_t parameter, const Slice& slice) {
  if (slice.empty()) return;
  const auto pitch = slice.columns * element_bytes(model.parameters[parameter].info.dtype);
  region.pieces.push_back({parameter, slice, region.size_bytes, pitch});
  region.size_bytes += round_up(slice.rows * pitch, SourceLayout::alignment_bytes);
}

/// Of a tensor with n elements along its first dimension those [r * ceil(n/R), (r + 1) * ceil(n/R)), as far as there
/// are any, and of these what the rule is about.
Slice fsdp_rows(const ParameterRule& rule, std::uint64_t trainers, std::uint64_t rank) noexcept {
  const auto [rows, columns] = matrix_of(rule.info);
  const auto first = rule.info.shape.empty() ? 1 : rule.info.shape[0], inner = rows / std::max<std::uint64_t>(first, 1);
  const auto each = first / trainers + (first % trainers == 0 ? 0 : 1);
  const auto begin = std::min(rank * each, first), end = std::min(begin + each, first);
  return intersection(section_of(rule), {begin * inner, 0, (end - begin) * inner, columns});
}

/// As a trainer of that many tensor-parallel ranks has it, which knows nothing of groups that own experts.
Slice tp_part(ParameterRule rule, std::uint64_t trainers, std::uint64_t rank) {
  rule.ep = 1;
  return shard_of(rule, trainers, rank);
}

/// Of each parameter of a quantised model that has scales, the matrix that they are of.
std::vector<std::optional<std::size_t>> matrices_of_scales(const Model& model) {
  std::vector<std::optional<std::size_t>> matrices(model.parameters.size());
  for (std::size_t p = 0; p < matrices.size(); ++p) {
    if (const auto scales = scales_parameter(model, p)) matrices[*scales] = p;
  }
  return matrices;
}

/// Scales as those have them who have what they scale; false when one of these pieces cuts what shares a scale.
bool take_scales(const Model& model, const TensorInfo& matrix, std::vector<Slice>& pieces) {
  for (auto& piece : pieces) {
    if (piece.empty()) continue;
    const auto scales = scales_of(model.format.quantization, matrix, piece);
    if (!scales) return false;
    piece = *scales;
  }
  return true;
}

/// Every rank has `part(rule, rank)` of every parameter, and the scales of what it has, unless that cuts them.
template <typename Part>
SourceLayout cut_layout(const Model& model, std::uint64_t trainers, const Part& part) {
  auto layout = regions(trainers);
  const auto matrices = matrices_of_scales(model);
  std::vector<Slice> pieces(trainers);
  const auto cut = [&](std::size_t p) {
    for (std::uint64_t rank = 0; rank < trainers; ++rank) pieces[rank] = part(model.parameters[p], rank);
  };
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    cut(matrices[p].value_or(p));
    if (matrices[p] && !take_scales(model, model.parameters[*matrices[p]].info, pieces)) cut(p);
    for (std::uint64_t rank = 0; rank < trainers; ++rank) append(layout.ranks[rank], model, p, pieces[rank]);
  }
  return layout;
}

bool inside(const Slice& slice, const Slice& whole) noexcept {
  return intersection(slice, whole) == slice;
}

auto place_of(const Piece& piece) noexcept {
  return std::tuple(piece.parameter_index, piece.slice.row, piece.slice.column, piece.slice.rows, piece.slice.columns);
}

}  // namespace

std::string_view name(LayoutKind kind) noexcept {
  switch (kind) {
    case LayoutKind::whole: return "whole";
    case LayoutKind::fsdp: return "fsdp";
    case LayoutKind::tp: return "tp";
    case LayoutKind::custom: return "custom";
  }
  return "unknown";
}

std::span<const Piece> SourceRegion::pieces_of(std::size_t parameter) const noexcept {
  const auto begin = std::ranges::lower_bound(pieces, parameter, {}, &Piece::parameter_index);
  return {begin, std::ranges::upper_bound(begin, pieces.end(), parameter, {}, &Piece::parameter_index)};
}

SourceLayout whole_layout(const Model& model, std::uint64_t trainers) {
  auto layout = regions(trainers);
  for (std::size_t p = 0; p < model.parameters.size(); ++p)
    append(layout.ranks[0], model, p, section_of(model.parameters[p]));
  return layout;
}

SourceLayout fsdp_layout(const Model& model, std::uint64_t trainers) {
  return cut_layout(model, trainers,
                    [&](const ParameterRule& rule, std::uint64_t rank) { return fsdp_rows(rule, trainers, rank); });
}

SourceLayout tp_layout(const Model& model, std::uint64_t trainers) {
  try {
    return cut_layout(model, trainers,
                      [&](const ParameterRule& rule, std::uint64_t rank) { return tp_part(rule, trainers, rank); });
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("trainer ranks cannot hold what an engine's would: {}", error.what()),
                fmt::format("this model can be cut for tp {}; fsdp takes any number of trainer ranks",
                            fmt::join(possible_tp(model), ", ")));
  }
}

SourceLayout make_layout(LayoutKind kind, const Model& model, std::uint64_t trainers) {
  switch (kind) {
    case LayoutKind::whole: return whole_layout(model, trainers);
    case LayoutKind::fsdp: return fsdp_layout(model, trainers);
    case LayoutKind::tp: return tp_layout(model, trainers);
    case LayoutKind::custom: break;
  }
  throw Error(ExitCode::config, "a custom source layout is made of the rectangles that trainer ranks have");
}

SourceLayout custom_layout(const Model& model, std::uint64_t trainers, std::span<const HeldRectangle> rectangles) {
  auto layout = regions(trainers);
  std::vector<std::string> problems;
  std::vector<HeldRectangle> held;
  for (const auto& rectangle : rectangles) {
    const auto& [from, parameter, slice] = rectangle;
    if (from >= trainers) {
      problems.push_back(fmt::format("trainer rank {} of {}", from, trainers));
    } else if (parameter >= model.parameters.size()) {
      problems.push_back(fmt::format("parameter {} of {}", parameter, model.parameters.size()));
    } else if (const auto& rule = model.parameters[parameter];
               !slice.within(matrix_of(rule.info)) || !(slice.empty() || inside(slice, section_of(rule)))) {
      const auto matrix = matrix_of(rule.info);
      problems.push_back(fmt::format("{}: trainer rank {} has rows {} + {} and columns {} + {} of {} x {}",
                                     rule.info.name, from, slice.row, slice.rows, slice.column, slice.columns,
                                     matrix.rows, matrix.columns));
    } else {
      held.push_back(rectangle);
    }
  }
  if (!problems.empty())
    throw Error(ExitCode::config, fmt::format("what is not there cannot be held:\n  {}", list_lines(problems)),
                "rectangles are rows and columns of a parameter's matrix view, counted from 0");
  std::ranges::sort(held, {}, [](const HeldRectangle& h) { return place_of({h.parameter_index, h.slice, 0, 0}); });
  for (const auto& [from, parameter, slice] : held) append(layout.ranks[from], model, parameter, slice);
  check_layout(model, layout);
  return layout;
}

std::vector<Holding> holdings_of(const SourceLayout& layout) {
  std::vector<Holder> holders;
  for (std::size_t from = 0; from < layout.ranks.size(); ++from) {
    for (const auto& piece : layout.ranks[from].pieces) holders.push_back({from, piece});
  }
  std::ranges::stable_sort(holders, {}, [](const Holder& holder) { return place_of(holder.piece); });
  std::vector<Holding> holdings;
  for (const auto& holder : holders) {
    if (holdings.empty() || place_of(holdings.back().piece()) != place_of(holder.piece)) holdings.emplace_back();
    holdings.back().holders.push_back(holder);
  }
  return holdings;
}

}  // namespace weightcast
