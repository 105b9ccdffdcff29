#pragma once

#include <cstdint>
#include <span>
#include <string_view>

/// The model families whose sharding rules are known, a line each in families.cpp: what they are called, and what their
/// layers have besides what all have. Most are Llama's parameters by another name.
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
};

/// Where it is said that linear layers have a bias.
enum class Bias : std::uint8_t {
  never,      ///< the code has none, whatever the config says
  always,     ///< the code has one, whatever the config says
  by_config,  ///< the config's key says it: "attention_bias", "mlp_bias"; none without the key
};

struct FamilySpec {
  Family family;
  std::string_view model_type;    ///< "model_type" in config.json
  std::string_view architecture;  ///< in "architectures": the class with the head
  Bias attention_bias;            ///< of q_proj, k_proj and v_proj
  Bias attention_output_bias;     ///< of o_proj
  Bias mlp_bias;                  ///< of gate_proj, up_proj and down_proj
  bool head_norms = false;        ///< q_norm and k_norm, over a head
  bool tied = false;              ///< what a config without "tie_word_embeddings" means
};

/// All of them, in the order of Family.
std::span<const FamilySpec> families() noexcept;
const FamilySpec& spec_of(Family family) noexcept;
/// The model type.
std::string_view name(Family family) noexcept;

}  // namespace weightcast
