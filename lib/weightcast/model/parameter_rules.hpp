#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/model/model_config.hpp"
#include "weightcast/tensor/slice.hpp"
#include "weightcast/tensor/tensor_info.hpp"

/// A model's parameters and, for each, which part an engine rank holds and where in which engine tensor. The rules are
/// those of SGLang and vLLM (models/llama.py, qwen2.py, qwen3.py, mixtral.py, deepseek_v2.py, gpt_oss.py,
/// layers/linear.py, layers/vocab_parallel_embedding.py, layers/moe/fused_moe_triton/layer.py); families.hpp says which
/// model has which parameters. Pure: no files, no MPI.
namespace weightcast {

/// How engines hold the matrices of linear layers; not embeddings, head, norms and routers. A scale is what elements of
/// type F8_E4M3 are multiplied by, in F32, under its matrix's name with another end.
enum class Quantization : std::uint8_t {
  none,
  fp8_block,   ///< a scale for each 128 x 128 elements: "weight_scale_inv" [ceil(rows/128), ceil(columns/128)]
  fp8_channel  ///< one for each row: "weight_scale" [rows, 1]
};
std::string_view name(Quantization quantization) noexcept;

/// What engines hold besides what the config says.
struct EngineFormat {
  std::uint64_t ep = 1;  ///< expert parallel: groups of tp/ep ranks, each of which owns its share of the experts whole
  Quantization quantization = Quantization::none;
  bool operator==(const EngineFormat&) const = default;
};

/// The config.json text that parse_model_config() reads back as `config`, acceptable to transformers; it refuses one
/// that says that weights are quantised.
std::string to_config_json(const ModelConfig& config, const EngineFormat& format = {});

/// "weight_scale_inv" or "weight_scale" for a matrix that is quantised.
std::string scale_name(std::string_view matrix_name, Quantization quantization);

/// How a parameter is cut over T tensor-parallel ranks. T = tp size, t = tp rank.
enum class ShardKind : std::uint8_t {
  replicated,  ///< everybody holds all of it
  rows,        ///< rows [t R/T, (t+1) R/T)
  columns,     ///< columns [t C/T, (t+1) C/T): a strided source
  kv_heads,    ///< rows by whole key/value heads; for T > K heads are shared by T/K neighbouring ranks
  vocabulary,  ///< rows of the vocabulary padded to a multiple of 64 and cut in T; rows past the end are zero
};
std::string_view name(ShardKind kind) noexcept;

/// One parameter: its table entry, and where it goes. A checkpoint's tensor that is several parameters in one (a fused
/// qkv_proj, the stacked experts of a layer) has a rule for each, one behind the other, with the tensor's name and
/// shape; rows, columns, offsets and digests are the tensor's, so that those of its rules add up.
struct ParameterRule {
  TensorInfo info;            ///< HF name, dtype, shape of the tensor
  std::string engine_tensor;  ///< "model.layers.0.self_attn.qkv_proj.weight", ...; several parameters share a fused one
  std::uint32_t part = 0;     ///< position inside the fused tensor: rows of part 0, then of part 1, ...
  ShardKind kind = ShardKind::replicated;
  std::uint64_t units = 0;          ///< what must be cut evenly: heads, kv heads or rows/columns; 0 for replicated
  std::uint64_t row = 0, rows = 0;  ///< of the tensor's matrix view
  std::uint64_t expert = 0, experts = 0;  ///< which of how many it belongs to; of none: 0 experts
  std::uint64_t ep = 1;                   ///< EngineFormat::ep of an expert's, else 1
};

/// A tensor as the matrix that the rules cut; see MatrixShape.
MatrixShape matrix_of(const TensorInfo& info) noexcept;
/// What a rule is about, in elements of the tensor's matrix view.
Slice section_of(const ParameterRule& rule) noexcept;
std::uint64_t size_bytes_of(const ParameterRule& rule) noexcept;

/// The model: rules in canonical order (embeddings, layers ascending: input norm, q, k, v, o, ..., final norm, head),
/// the order of sending, so that parts of one engine tensor are neighbours.
struct Model {
  ModelConfig config;
  std::vector<ParameterRule> parameters;
  EngineFormat format = {};
  std::vector<std::size_t> by_name = {};  ///< indices of all parameters, by the names of their tensors

  /// Index of the (first) parameter of that HF name, or -1. An alias resolves to its target (lm_head.weight when tied).
  std::ptrdiff_t find(std::string_view name) const noexcept;
  /// Index behind the last parameter of the same tensor.
  std::size_t tensor_end(std::size_t parameter) const noexcept;
  /// The tensors, each by the index of its first parameter.
  std::vector<std::size_t> tensors() const;
  std::size_t tensor_count() const noexcept;
  /// Bytes of all parameters.
  std::uint64_t size_bytes() const noexcept;
};

/// The parameters of a model of this shape. Error(config) when the sizes overflow, or `format` asks for what the family
/// does not have, or experts do not divide.
Model build_model(const ModelConfig& config, const EngineFormat& format = {});
/// Fills Model::by_name.
void index_names(Model& model);
/// The same tensors as files hold them: a rule for each, which cuts nothing.
Model tensors_of(const Model& model);

/// The rectangle of the parameter that tp rank `t` of `tp` holds, in elements of its tensor's matrix view; may be empty
/// (padding, experts of others). Error(config) naming parameter, size and tp when it does not divide.
Slice shard_of(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t);

/// Rows and columns that the shard takes up in the engine tensor, padding rows included (>= shard_of()'s rows).
MatrixShape shard_extent(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t);

/// How many of `tp` ranks hold each element of the parameter.
std::uint64_t holders_of(const ParameterRule& rule, std::uint64_t tp) noexcept;

/// Every tp that all parameters of the model can be cut for, ascending: for messages.
std::vector<std::uint64_t> possible_tp(const Model& model);

/// True when rank t's shard is also held by a lower tp rank (replicated parameters, shared key/value heads): counted
/// once.
bool is_copy(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) noexcept;

/// The seed's twelve sample parameters (indices into model.parameters), layers clipped to the model's last; of a family
/// that lacks some of them others in their place, a tied head not.
std::vector<std::size_t> sample_parameters(const Model& model);

}  // namespace weightcast
