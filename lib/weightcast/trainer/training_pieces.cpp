#include "weightcast/trainer/training_pieces.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/match_checkpoint.hpp"

namespace weightcast {
namespace {

/// A piece as a tensor of its own: its label, and the extents that whoever has it sees.
TensorInfo info_of(const TensorInfo& parameter, const Slice& slice) {
  TensorInfo info{label_of(parameter, slice), parameter.dtype, parameter.shape};
  if (!info.shape.empty()) info.shape[0] = slice.rows;
  if (info.shape.size() > 1)
    info.shape[1] = slice.columns * parameter.shape[1] / std::max<std::uint64_t>(matrix_of(parameter).columns, 1);
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
      : model_(plan.model), region_(plan.sources.ranks.at(trainer_rank)), trainer_rank_(trainer_rank) {
    match_.tensor_index.assign(region_.pieces.size(), -1);
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
    const auto pieces = region_.pieces_of(parameter);
    const auto piece = slice ? std::ranges::find(pieces, *slice, &Piece::slice) : pieces.end();
    if (piece == pieces.end()) return refuse(tensor, parameter, pieces);
    const auto wire = model_.parameters[parameter].info.dtype;
    if (tensor.info.dtype != wire && !rounding_of(tensor.info.dtype, wire)) refuse(tensor, parameter, {piece, 1});
    hold(tensors, index, static_cast<std::size_t>(&*piece - region_.pieces.data()));
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
    throw Error(
        ExitCode::bad_data, text,
        "give each piece that the source layout says once, and where it lies in its parameter unless it is all of"
        " it, in the model's dtype; BF16 also as F32 or F16, F16 also as F32 or BF16");
  }

 private:
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

  void hold(std::span<const TrainingTensor> tensors, std::size_t index, std::size_t piece) {
    auto& holder = match_.tensor_index[piece];
    if (holder < 0) {
      holder = static_cast<std::ptrdiff_t>(index);
      return;
    }
    const auto& parameter = model_.parameters[region_.pieces[piece].parameter_index].info;
    const auto& other = tensors[static_cast<std::size_t>(holder)];
    const bool known =
        std::ranges::find(match_.aliases, piece, &PieceMatch::Alias::piece_index) != match_.aliases.end();
    if (known || other.info.name == tensors[index].info.name)
      return add(0, fmt::format("{} appears twice", label_of({tensors[index].info.name, {}, parameter.shape},
                                                             region_.pieces[piece].slice)));
    const bool embedding = tensors[index].info.name == parameter.name;
    match_.aliases.push_back({piece, embedding ? static_cast<std::size_t>(holder) : index});
    if (embedding) holder = static_cast<std::ptrdiff_t>(index);
  }

  const Model& model_;
  const SourceRegion& region_;
  std::size_t trainer_rank_;
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
  for (std::size_t i = 2; i < full.size(); ++i) {
    if (shape[i] != full[i]) return std::nullopt;
  }
  const auto inner = matrix.columns / full[1];
  return Slice{offsets[0], offsets[1] * inner, shape[0], shape[1] * inner};
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

std::optional<std::size_t> piece_of(const TransferPlan& plan, std::size_t trainer_rank, const TrainingTensor& tensor) {
  if (plan.model.find(tensor.info.name) < 0)
    fail(ExitCode::bad_data, "the model has no parameter {}", printable(tensor.info.name));
  Matcher matcher(plan, trainer_rank);
  matcher.take({&tensor, 1}, 0);
  const auto found = matcher.result(false).tensor_index;
  const auto piece = std::ranges::find_if(found, [](auto index) { return index >= 0; });
  return piece == found.end() ? std::nullopt : std::optional(static_cast<std::size_t>(piece - found.begin()));
}

}  // namespace weightcast
