#pragma once

#include <cstdint>
#include <span>
#include <string_view>

/// The model families whose sharding rules are known, a row each in families.cpp: what they are called, what their
/// config.json says where, and what their layers are made of.
namespace weightcast {

enum class Family : std::uint8_t {
  llama,
  qwen2,
  qwen3,
  mistral,
  ministral,
  ministral3,
  smollm3,
  granite,
  helium,
  cwm,
  seed_oss,
  ernie4_5,
  gemma,
  gemma2,
  gemma3_text,
  olmo2,
  olmo3,
  exaone4,
  phi3,
  glm,
  glm4,
  mixtral,
  olmoe,
  qwen2_moe,
  qwen3_moe,
  glm4_moe,
  dots1,
  glm4_moe_lite,
  deepseek_v2,
  deepseek_v3,
  gpt_oss,
};

/// A yes or no of the config: the value of its key, `otherwise` without it; without a key always that.
struct Flag {
  std::string_view key = {};
  bool otherwise = false;
};

/// Norms of queries and keys.
enum class QueryNorms : std::uint8_t {
  none,
  head,   ///< q_norm and k_norm, over a head
  whole,  ///< over all heads together: held whole by every rank
};

/// How a mixture of experts is written in a checkpoint.
enum class ExpertForm : std::uint8_t {
  none,
  separate,  ///< three matrices [out, in] for each expert, under its index
  stacked,   ///< two tensors [experts, in, out] with biases, gate and up in turn along `out`
};

/// What a layer has in the place of one MLP. An absent name: there is no such thing.
struct ExpertsSpec {
  ExpertForm form = ExpertForm::none;
  std::string_view module = "mlp";   ///< of the layer
  std::string_view router = "gate";  ///< of the module
  bool router_bias = false;
  bool correction_bias = false;  ///< the router's e_score_correction_bias, F32
  std::string_view gate = "gate_proj", up = "up_proj", down = "down_proj";  ///< of an expert
  std::string_view shared = {};                                             ///< what every token takes, too
  std::string_view shared_gate = {};
  std::string_view count_key = {};  ///< of the config: number of experts ("num_local_experts" is taken as well)
  std::string_view size_key = {};   ///< intermediate size of an expert
  std::string_view shared_size_key = {}, shared_count_key = {};  ///< of what is shared: its size, or in experts' sizes
};

struct FamilySpec {
  Family family;
  std::string_view model_type;    ///< "model_type" in config.json
  std::string_view architecture;  ///< in "architectures": the class with the head
  /// Modules and norms in the order of the forward pass; "self_attn" and "mlp" are the modules.
  std::span<const std::string_view> layer;
  Flag attention_bias = {};         ///< of q_proj, k_proj and v_proj
  Flag attention_output_bias = {};  ///< of o_proj
  Flag mlp_bias = {};               ///< of gate_proj, up_proj and down_proj, but not of experts
  QueryNorms query_norms = QueryNorms::none;
  Flag has_query_norms = {{}, true};  ///< whether a model has them
  bool fused_qkv = false;             ///< in the checkpoint: self_attn.qkv_proj
  bool fused_gate_up = false;         ///< in the checkpoint: mlp.gate_up_proj
  bool latent_attention = false;      ///< low-rank queries, keys and values
  bool sinks = false;                 ///< self_attn.sinks, one for each head
  bool tied = false;                  ///< what a config without "tie_word_embeddings" means
  std::uint64_t predictors =
      0;  ///< layers of multi-token prediction that a checkpoint may have, where the config is silent
  std::uint64_t head_dim = 0;  ///< what a config without "head_dim" means; 0: the hidden size over the heads
  ExpertsSpec experts = {};
};

/// All of them, in the order of Family.
std::span<const FamilySpec> families() noexcept;
const FamilySpec& spec_of(Family family) noexcept;
/// The model type.
std::string_view name(Family family) noexcept;

}  // namespace weightcast
