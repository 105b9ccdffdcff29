#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/model/parameter_rules.hpp"

/// How the tensors of people's checkpoints become a model's parameters: the one matching of all commands.
namespace weightcast {

/// What a checkpoint lacks or has too much of, held against the model.
struct TensorMatch {
  std::vector<std::ptrdiff_t> tensor_index;  ///< for each parameter of the model: index into the checkpoint's tensors
  std::vector<std::string> skipped;  ///< known and deliberately left out: rotary_emb buffers, an alias lm_head.weight
  std::ptrdiff_t alias = -1;         ///< index of an lm_head.weight that must equal the embedding bit for bit, or -1
};

/// Matches a checkpoint's tensors with the model's parameters. Error(bad_data) listing every missing, unknown,
/// mis-shaped and mistyped name (at most 20, then a count). `what` names the checkpoint.
TensorMatch match_tensors(const Model& model, std::span<const TensorInfo> tensors, const std::string& what);

struct CheckpointMatch {
  std::vector<std::ptrdiff_t> tensor_index;  ///< for each parameter of the model: index into the checkpoint's tensors
  std::ptrdiff_t alias = -1;                 ///< see TensorMatch
  std::vector<std::string> notes;            ///< what was renamed or left out, a line each
  std::string rounding;                      ///< which floats are of another type than the model's; empty: none
};

/// Matches a checkpoint's tensors with the model's parameters as match_tensors() does, and before that:
/// - leaves out what one of the `ignore` patterns (of fnmatch(3), held against the whole name) names, and known
///   bookkeeping (_extra_state, value heads, scales of key/value caches);
/// - strips a prefix that all names share, when it is a known one (of torch.compile, DDP, FSDP, PEFT, TRL, of language
///   models inside others), and adds the `model.` that a model saved without its head lacks;
/// - leaves out layers of multi-token prediction behind the last, and of a model inside another what is not its own;
/// - takes F32, F16 and BF16 for each other: WeightSource converts them.
/// Error(bad_data) like match_tensors(), but in one line for an unknown prefix, an adapter and another naming.
/// Error(usage) for a pattern that leaves out what the model needs. `what` names the checkpoint.
CheckpointMatch match_checkpoint(const Model& model, std::span<const TensorInfo> tensors, const std::string& what,
                                 std::span<const std::string> ignore = {});

/// Whether this is a buffer of old checkpoints that the engine computes for itself.
bool is_rotary_buffer(std::string_view name) noexcept;
/// Whether weights of this type can be those of a model: F32, F16, BF16. They can be converted into each other.
bool is_weight_type(DType dtype) noexcept;
/// The weight type that most of the tensors' bytes have; nothing when none has one.
std::optional<DType> dtype_of_weights(std::span<const TensorInfo> tensors);
/// Whether the tensors have routers of experts (transformers keeps those of some families in F32) in F32 beside weights
/// of another type.
bool has_wide_routers(std::span<const TensorInfo> tensors);
/// Whether one of the patterns names the tensor.
bool is_ignored(const std::string& name, std::span<const std::string> ignore);

}  // namespace weightcast
