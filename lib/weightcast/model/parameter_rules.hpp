#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/model/model_config.hpp"
#include "weightcast/tensor/slice.hpp"
#include "weightcast/tensor/tensor_info.hpp"

/// A model's parameters and, for each, which part an engine rank holds and where in which engine tensor. The rules are
/// those of SGLang and vLLM (models/llama.py, qwen2.py, qwen3.py, layers/linear.py,
/// layers/vocab_parallel_embedding.py); what else families.hpp names has the parameters of Llama in transformers
/// (models/*/modeling_*.py) and is cut likewise. Pure: no files, no MPI.
namespace weightcast {

/// How a parameter is cut over T tensor-parallel ranks. T = tp size, t = tp rank.
enum class ShardKind : std::uint8_t {
  replicated,  ///< everybody holds all of it
  rows,        ///< rows [t R/T, (t+1) R/T)
  columns,     ///< columns [t C/T, (t+1) C/T): a strided source
  kv_heads,    ///< rows by whole key/value heads; for T > K heads are shared by T/K neighbouring ranks
  vocabulary,  ///< rows of the vocabulary padded to a multiple of 64 and cut in T; rows past the end are zero
};
std::string_view name(ShardKind kind) noexcept;

/// One parameter: its table entry, and where it goes.
struct ParameterRule {
  TensorInfo info;            ///< HF name, dtype, shape
  std::string engine_tensor;  ///< "model.layers.0.self_attn.qkv_proj.weight", ...; several parameters share a fused one
  std::uint32_t part = 0;     ///< position inside the fused tensor: rows of part 0, then of part 1, ...
  ShardKind kind = ShardKind::replicated;
  std::uint64_t units = 0;  ///< what must be cut evenly: heads, kv heads or rows/columns; 0 for replicated
};

/// A tensor as the matrix that the rules cut; see MatrixShape.
MatrixShape matrix_of(const TensorInfo& info) noexcept;

/// The model: rules in canonical order (embeddings, layers ascending: input norm, q, k, v, o, ..., final norm, head),
/// the order of sending, so that parts of one engine tensor are neighbours.
struct Model {
  ModelConfig config;
  std::vector<ParameterRule> parameters;

  /// Index of the parameter of that HF name, or -1. An alias resolves to its target (lm_head.weight when tied).
  std::ptrdiff_t find(std::string_view name) const noexcept;
  /// Bytes of all parameters.
  std::uint64_t size_bytes() const noexcept;
};

/// The parameters of a model of this shape. Error(config) when the sizes overflow.
Model build_model(const ModelConfig& config);

/// The rectangle of the parameter that tp rank `t` of `tp` holds, in elements of its matrix view; may be empty
/// (padding). Error(config) naming parameter, size and tp when it does not divide.
Slice shard_of(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t);

/// Rows and columns that the shard takes up in the engine tensor, padding rows included (>= shard_of()'s rows).
MatrixShape shard_extent(const ParameterRule& rule, std::uint64_t tp);

/// Every tp that all parameters of the model can be cut for, ascending: for messages.
std::vector<std::uint64_t> possible_tp(const Model& model);

/// True when rank t's shard is also held by a lower tp rank (replicated parameters, shared key/value heads): counted
/// once.
bool is_copy(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) noexcept;

/// The seed's twelve sample parameters (indices into model.parameters), layers clipped to the model's last.
std::vector<std::size_t> sample_parameters(const Model& model);

}  // namespace weightcast
