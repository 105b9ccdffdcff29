#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/device/elements.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/device/quantize.hpp"
#include "weightcast/plan/transfer_plan.hpp"

/// Which of a trainer rank's pieces the tensors of its training loop are: the names, extents and places of a table,
/// held against the plan's source layout. Pure.
namespace weightcast {

/// One tensor of a training loop, where the loop keeps it: a parameter, or the part of one that this rank has.
struct TrainingTensor {
  TensorInfo info;             ///< its HF name, and what it is there: F32 for masters of BF16 or F16 parameters
  const void* data = nullptr;  ///< first element, on the host or on `placement.gpu`
  Placement placement = {};
  std::vector<std::int64_t> strides_bytes = {};  ///< of each dimension, any, also 0 and negative; empty: dense
  /// Of a part: the index of its first element in the parameter, and the extents of that. Both empty: all of it.
  std::vector<std::uint64_t> offsets = {}, full_shape = {};
};

/// How elements of type `given` become those of a parameter of type `wire`, to nearest, ties to even: F32 and F16 for
/// BF16, F32 and BF16 for F16. Nothing for any other pair: equal ones are copied, and the others are not taken.
std::optional<Rounding> rounding_of(DType given, DType wire) noexcept;
/// What fp8 is made of: F32, BF16 or F16.
std::optional<WideFloat> wide_of(DType dtype) noexcept;
/// What has a scale of its own in engines of that format, which has scales.
inline ScaleKind scale_kind(Quantization quantization) noexcept {
  return quantization == Quantization::fp8_block ? ScaleKind::block : ScaleKind::channel;
}

/// The rectangle of a parameter's matrix view that a tensor is, an empty one of a tensor without elements. Nothing when
/// it does not fit the parameter: other extents, places beyond it, or a cut that is no rectangle of the matrix.
std::optional<Slice> slice_of(const TensorInfo& parameter, const TrainingTensor& tensor) noexcept;

/// A rectangle of a parameter's matrix view as a tensor of its own, without its memory: its extents, and where it is in
/// the parameter. Of shapes of three dimensions it is whole matrices, or lies in one of them.
TrainingTensor tensor_of(const TensorInfo& parameter, const Slice& slice);

/// "model.norm.weight is F32 [288] at [288] of [576]": a tensor as its owner says that it is.
std::string describe(const TrainingTensor& tensor);

/// A piece by its parameter's name, which is all when it is the whole of it: "model.norm.weight[0:288]",
/// "lm_head.weight[0:288, :]".
std::string label_of(const TensorInfo& parameter, const Slice& slice);

/// Which tensor is which piece.
struct PieceMatch {
  /// The same values under the head's name for a piece of the embedding that it is tied to.
  struct Alias {
    std::size_t piece_index = 0, tensor_index = 0;
  };
  /// A piece of a matrix that is rounded to fp8, and that of its scales, for which the same tensor stands.
  struct Quantized {
    std::size_t piece_index = 0, scales_index = 0;
  };
  std::vector<std::ptrdiff_t> tensor_index;  ///< by piece of the rank's source region; -1: none
  /// By piece: of its elements in that tensor the first, which is not 0 where a tensor is several pieces.
  std::vector<std::uint64_t> first_element;
  std::vector<Alias> aliases;
  std::vector<Quantized> quantized;
  std::vector<bool> by_quantizing;  ///< by piece: whether it is one of those, or their scales
};
/// Of a table that has all pieces of a trainer rank, in any order; tensors without elements and buffers of rotary
/// embeddings are passed over. Of a quantised model a matrix in F32, BF16 or F16 stands for its scales as well, which
/// may not be there beside it; in F8_E4M3 it does not. Error(bad_data) listing every missing, unknown, repeated,
/// mis-shaped, misplaced and mistyped one, and those of which this rank has only a part of what shares a scale, or
/// other scales (at most 20, then a count).
PieceMatch match_pieces(const TransferPlan& plan, std::size_t trainer_rank, std::span<const TrainingTensor> tensors);
/// Of one tensor, which is index 0. Error(bad_data) as above.
PieceMatch match_piece(const TransferPlan& plan, std::size_t trainer_rank, const TrainingTensor& tensor);

}  // namespace weightcast
