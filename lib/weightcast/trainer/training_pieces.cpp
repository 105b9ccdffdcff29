#include "weightcast/trainer/training_pieces.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/match_checkpoint.hpp"
#include "weightcast/model/scale_rules.hpp"

namespace weightcast {
namespace {

/// Rows of the matrix view that one row of the first dimension is.
std::uint64_t inner_rows(const TensorInfo& info) {
  return info.shape.size() < 3 ? 1 : matrix_of(info).rows / std::max<std::uint64_t>(info.shape[0], 1);
}

/// A piece as a tensor of its own: its label, and the extents that whoever has it sees.
TensorInfo info_of(const TensorInfo& parameter, const Slice& slice) {
  auto info = tensor_of(parameter, slice).info;
  info.name = label_of(parameter, slice);
  return info;
}

/// "[0:288, :]", of all "[:, :]".
std::string range(std::uint64_t first, std::uint64_t count, std::uint64_t all) {
  return count == all ? ":" : fmt::format("{}:{}", first, first + count);
}

/// Tensors held one by one against the pieces of a trainer rank.
class Matcher {
 public:
  Matcher(const TransferPlan& plan, std::size_t trainer_rank)
      : model_(plan.model),
        region_(plan.sources.ranks.at(trainer_rank)),
        trainer_rank_(trainer_rank),
        alone_(plan.sources.ranks.size() == 1) {
    match_.tensor_index.assign(region_.pieces.size(), -1);
    match_.first_element.assign(region_.pieces.size(), 0);
    match_.by_quantizing.assign(region_.pieces.size(), false);
    misfit_.assign(model_.parameters.size(), false);
  }

  void take(std::span<const TrainingTensor> tensors, std::size_t index) {
    const auto& tensor = tensors[index];
    if (is_rotary_buffer(tensor.info.name)) return;
    const auto found = model_.find(tensor.info.name);
    if (found < 0) {
      return add(model_.parameters.size() + 1,
                 fmt::format("{} is unknown to {} models", printable(tensor.info.name), name(model_.config.family)));
    }
    const auto parameter = static_cast<std::size_t>(found);
    const auto slice = slice_of(model_.parameters[parameter].info, tensor);
    if (slice && slice->empty()) return;
    if (!slice) return refuse(tensor, parameter, region_.pieces_of(parameter));
    std::vector<std::size_t> held;
    for (auto p = parameter; p < model_.tensor_end(parameter); ++p) {
      const auto part = intersection(*slice, section_of(model_.parameters[p]));
      if (part.empty()) continue;
      const auto pieces = region_.pieces_of(p);
      const auto piece = std::ranges::find(pieces, part, &Piece::slice);
      if (piece == pieces.end()) return refuse(tensor, p, pieces);
      held.push_back(static_cast<std::size_t>(&*piece - region_.pieces.data()));
    }
    const auto wire = model_.parameters[parameter].info.dtype;
    const bool quantized = is_quantized(wire) && wide_of(tensor.info.dtype);
    if (tensor.info.dtype != wire && !quantized && !rounding_of(tensor.info.dtype, wire))
      refuse(tensor, parameter, {&region_.pieces[held.front()], 1});
    for (const auto piece : held) {
      match_.first_element[piece] = (region_.pieces[piece].slice.row - slice->row) * slice->columns;
      const bool first = hold(tensors, index, piece);
      if (quantized && first) hold_scales(index, piece);
    }
  }

  void expect_all() {
    for (std::size_t i = 0; i < region_.pieces.size(); ++i) {
      const auto p = region_.pieces[i].parameter_index;
      if (match_.tensor_index[i] < 0 && !misfit_[p]) add(p + 1, fmt::format("{} is missing", label(i)));
    }
  }

  PieceMatch result(bool table) {
    std::ranges::stable_sort(problems_, {}, &Problem::first);
    if (problems_.empty()) return std::move(match_);
    std::vector<std::string> lines;
    for (const auto& [order, line] : problems_) lines.push_back(line);
    const auto count = lines.size();
    const auto text = table ? fmt::format("the table of training tensors does not fit the model: {} difference{}\n  {}",
                                          count, count == 1 ? "" : "s", list_lines(lines))
                            : lines.front();
    throw Error(ExitCode::bad_data, text, how_to_give());
  }

 private:
  std::string how_to_give() const {
    return fmt::format(
        "give {}, in the model's dtype; BF16 also as F32 or F16, F16 also as F32 or BF16{}",
        alone_ ? "every parameter once, under its Hugging Face name and in full"
               : "each piece that the source layout says once, and where it lies in its parameter unless it "
                 "is all of it",
        model_.format.quantization == Quantization::none ? "" : ", F8_E4M3 also as any of these, without its scales");
  }

  using Problem = std::pair<std::size_t, std::string>;  // in the order of the model; 0: repeated ones, last: unknown

  std::string label(std::size_t piece) const {
    const auto& [parameter, slice, offset, pitch] = region_.pieces[piece];
    return label_of(model_.parameters[parameter].info, slice);
  }
  void add(std::size_t order, std::string line) { problems_.emplace_back(order, std::move(line)); }

  /// It is none of `pieces`, which are the ones that it could be.
  void refuse(const TrainingTensor& tensor, std::size_t parameter, std::span<const Piece> pieces) {
    const auto& info = model_.parameters[parameter].info;
    auto expected = fmt::format("but trainer rank {} has nothing of it", trainer_rank_);
    if (!pieces.empty()) {
      const auto piece = info_of(info, pieces.front().slice);
      expected = fmt::format("expected {}{}{}", piece.name == info.name ? "" : piece.name + ", ", piece.describe(),
                             pieces.size() == 1 ? "" : fmt::format(", or another of {} pieces", pieces.size()));
    }
    add(parameter + 1, fmt::format("{}, {}", describe(tensor), expected));
    misfit_[parameter] = pieces.size() == 1;  // wrong, but not missing
  }

  bool is_quantized(DType wire) const noexcept {
    return wire == DType::F8_E4M3 && model_.format.quantization != Quantization::none;
  }

  /// The scales of a piece come of the tensor that it is rounded from.
  void hold_scales(std::size_t index, std::size_t piece) {
    const auto& slice = region_.pieces[piece].slice;
    const auto parameter = region_.pieces[piece].parameter_index;
    const auto scales = scales_parameter(model_, parameter).value();
    const auto& info = model_.parameters[scales].info;
    const bool block = model_.format.quantization == Quantization::fp8_block;
    const auto misfit = [&](std::string_view problem) {
      add(parameter + 1, fmt::format("{} {}", label(piece), problem));
      misfit_[scales] = true;
    };
    const auto part = scales_of(model_.format.quantization, model_.parameters[parameter].info, slice);
    if (!part) {
      return misfit(block ? "has parts of blocks of 128 x 128 that share a scale: fp8-channel, layout whole or another"
                            " number of trainer ranks does not cut them"
                          : "has parts of rows that share a scale: fp8-block, layout fsdp or whole does not cut them");
    }
    const auto pieces = region_.pieces_of(scales);
    const auto found = std::ranges::find(pieces, *part, &Piece::slice);
    if (found == pieces.end()) {
      return misfit(
          fmt::format("needs {} on the same trainer rank, which has {}: a layout in which scales are where"
                      " their rows are, whole or another number of trainer ranks has that",
                      label_of(info, *part), pieces.empty() ? "none of it" : label_of(info, pieces.front().slice)));
    }
    const auto scales_index = static_cast<std::size_t>(&*found - region_.pieces.data());
    if (match_.tensor_index[scales_index] >= 0) return add_both(scales_index, piece);
    match_.tensor_index[scales_index] = static_cast<std::ptrdiff_t>(index);
    match_.by_quantizing[piece] = match_.by_quantizing[scales_index] = true;
    match_.quantized.push_back({piece, scales_index});
  }
  void add_both(std::size_t scales_index, std::size_t piece) {
    add(region_.pieces[scales_index].parameter_index + 1,
        fmt::format("{} is given beside {}, which is rounded and makes its own: leave it out, or give the matrix in"
                    " F8_E4M3",
                    label(scales_index), label(piece)));
  }

  /// False when it is held already.
  bool hold(std::span<const TrainingTensor> tensors, std::size_t index, std::size_t piece) {
    auto& holder = match_.tensor_index[piece];
    if (holder < 0) {
      holder = static_cast<std::ptrdiff_t>(index);
      return true;
    }
    if (const auto made = std::ranges::find(match_.quantized, piece, &PieceMatch::Quantized::scales_index);
        made != match_.quantized.end()) {
      add_both(piece, made->piece_index);
      return false;
    }
    const auto& parameter = model_.parameters[region_.pieces[piece].parameter_index].info;
    const auto& other = tensors[static_cast<std::size_t>(holder)];
    const bool known =
        std::ranges::find(match_.aliases, piece, &PieceMatch::Alias::piece_index) != match_.aliases.end();
    if (known || other.info.name == tensors[index].info.name) {
      add(0, fmt::format("{} appears twice",
                         label_of({tensors[index].info.name, {}, parameter.shape}, region_.pieces[piece].slice)));
      return false;
    }
    const bool embedding = tensors[index].info.name == parameter.name;
    match_.aliases.push_back({piece, embedding ? static_cast<std::size_t>(holder) : index});
    if (embedding) holder = static_cast<std::ptrdiff_t>(index);
    return false;
  }

  const Model& model_;
  const SourceRegion& region_;
  std::size_t trainer_rank_;
  bool alone_;
  PieceMatch match_;
  std::vector<bool> misfit_;  // by parameter
  std::vector<Problem> problems_;
};

}  // namespace

std::optional<Rounding> rounding_of(DType given, DType wire) noexcept {
  if (wire == DType::BF16 && given == DType::F32) return Rounding{NarrowFloat::bf16, WideFloat::f32};
  if (wire == DType::BF16 && given == DType::F16) return Rounding{NarrowFloat::bf16, WideFloat::f16};
  if (wire == DType::F16 && given == DType::F32) return Rounding{NarrowFloat::f16, WideFloat::f32};
  if (wire == DType::F16 && given == DType::BF16) return Rounding{NarrowFloat::f16, WideFloat::bf16};
  return std::nullopt;
}

std::optional<WideFloat> wide_of(DType dtype) noexcept {
  if (dtype == DType::F32) return WideFloat::f32;
  if (dtype == DType::BF16) return WideFloat::bf16;
  return dtype == DType::F16 ? std::optional(WideFloat::f16) : std::nullopt;
}

std::optional<Slice> slice_of(const TensorInfo& parameter, const TrainingTensor& tensor) noexcept {
  const auto& [shape, offsets, full] = std::tie(tensor.info.shape, tensor.offsets, tensor.full_shape);
  const auto matrix = matrix_of(parameter);
  if (offsets.empty() && full.empty())
    return shape == parameter.shape ? std::optional(Slice{0, 0, matrix.rows, matrix.columns}) : std::nullopt;
  if (full != parameter.shape || shape.size() != full.size() || offsets.size() != full.size()) return std::nullopt;
  for (std::size_t i = 0; i < full.size(); ++i) {
    if (offsets[i] > full[i] || shape[i] > full[i] - offsets[i]) return std::nullopt;
  }
  if (std::ranges::find(shape, 0U) != shape.end()) return Slice{};
  if (full.size() < 2) return Slice{offsets.front(), 0, shape.front(), 1};
  // Rows are the leading dimensions: one of them may be cut, behind it all are whole, before it there is one of each.
  Slice slice{0, offsets.back(), 1, shape.back()};
  bool whole = true;
  for (std::size_t i = full.size() - 1; i-- > 0;) {
    if (!whole && shape[i] != 1) return std::nullopt;
    whole = whole && shape[i] == full[i];
    slice.rows *= shape[i];
  }
  for (std::size_t i = 0; i + 1 < full.size(); ++i) slice.row = slice.row * full[i] + offsets[i];
  return slice;
}

TrainingTensor tensor_of(const TensorInfo& parameter, const Slice& slice) {
  TrainingTensor tensor{.info = parameter, .full_shape = parameter.shape};
  auto& shape = tensor.info.shape;
  if (shape.empty()) return {.info = parameter};
  tensor.offsets.assign(shape.size(), 0);
  const auto inner = inner_rows(parameter);
  tensor.offsets[0] = slice.row / inner;
  shape[0] = std::max<std::uint64_t>(slice.rows / inner, 1);
  if (shape.size() > 2) {
    tensor.offsets[1] = slice.row % inner;
    shape[1] = std::min(slice.rows, inner);
  }
  if (shape.size() > 1) {
    tensor.offsets.back() = slice.column;
    shape.back() = slice.columns;
  }
  return tensor;
}

std::string label_of(const TensorInfo& parameter, const Slice& slice) {
  const auto [rows, columns] = matrix_of(parameter);
  if (slice == Slice{0, 0, rows, columns}) return parameter.name;
  if (parameter.shape.size() < 2) return fmt::format("{}[{}]", parameter.name, range(slice.row, slice.rows, rows));
  return fmt::format("{}[{}, {}]", parameter.name, range(slice.row, slice.rows, rows),
                     range(slice.column, slice.columns, columns));
}

std::string describe(const TrainingTensor& tensor) {
  const auto text = fmt::format("{} is {}", printable(tensor.info.name), tensor.info.describe());
  if (tensor.full_shape.empty() && tensor.offsets.empty()) return text;
  return fmt::format("{} at [{}] of [{}]", text, fmt::join(tensor.offsets, ", "), fmt::join(tensor.full_shape, ", "));
}

PieceMatch match_pieces(const TransferPlan& plan, std::size_t trainer_rank, std::span<const TrainingTensor> tensors) {
  Matcher matcher(plan, trainer_rank);
  for (std::size_t i = 0; i < tensors.size(); ++i) matcher.take(tensors, i);
  matcher.expect_all();
  return matcher.result(true);
}

PieceMatch match_piece(const TransferPlan& plan, std::size_t trainer_rank, const TrainingTensor& tensor) {
  if (plan.model.find(tensor.info.name) < 0)
    fail(ExitCode::bad_data, "the model has no parameter {}", printable(tensor.info.name));
  Matcher matcher(plan, trainer_rank);
  matcher.take({&tensor, 1}, 0);
  return matcher.result(false);
}

}  // namespace weightcast
