#include "weightcast/model/families.hpp"

#include <array>

// Source: the modelling files of transformers 5.24 (models/*/modeling_*.py), the names as they are saved.

namespace weightcast {
namespace {

using enum Family;
using std::string_view;

constexpr string_view input_norm = "input_layernorm", attention = "self_attn", mlp = "mlp",
                      after_attention = "post_attention_layernorm", before_mlp = "pre_feedforward_layernorm",
                      after_mlp = "post_feedforward_layernorm";
constexpr std::array norms_before{input_norm, attention, after_attention, mlp};  // of each module; a historical name
constexpr std::array norms_behind{attention, after_attention, mlp, after_mlp};
constexpr std::array gemma_norms{input_norm, attention, after_attention, before_mlp, mlp, after_mlp};
constexpr std::array<string_view, 6> glm4_norms{input_norm,      attention, "post_self_attn_layernorm",
                                                after_attention, mlp,       "post_mlp_layernorm"};

constexpr Flag always{{}, true}, attention_bias{"attention_bias", false}, attention_bias_or{"attention_bias", true},
    mlp_bias{"mlp_bias", false}, use_bias{"use_bias", false};
constexpr auto per_head = QueryNorms::head, whole = QueryNorms::whole;
constexpr auto separate = ExpertForm::separate;

constexpr ExpertsSpec mixtral_experts{.form = separate,
                                      .module = "block_sparse_moe",
                                      .gate = "w1",
                                      .up = "w3",
                                      .down = "w2",
                                      .count_key = "num_local_experts",
                                      .size_key = "intermediate_size"};
constexpr ExpertsSpec qwen2_experts{.form = separate,
                                    .shared = "shared_expert",
                                    .shared_gate = "shared_expert_gate",
                                    .count_key = "num_experts",
                                    .size_key = "moe_intermediate_size",
                                    .shared_size_key = "shared_expert_intermediate_size"};
constexpr ExpertsSpec qwen3_experts{.form = separate, .count_key = "num_experts", .size_key = "moe_intermediate_size"};
constexpr ExpertsSpec olmoe_experts{.form = separate, .count_key = "num_experts", .size_key = "intermediate_size"};
constexpr ExpertsSpec deepseek_v2_experts{.form = separate,
                                          .shared = "shared_experts",
                                          .count_key = "n_routed_experts",
                                          .size_key = "moe_intermediate_size",
                                          .shared_count_key = "n_shared_experts"};
constexpr ExpertsSpec deepseek_v3_experts = [] {
  auto spec = deepseek_v2_experts;
  spec.correction_bias = true;
  return spec;
}();
constexpr ExpertsSpec gpt_oss_experts{.form = ExpertForm::stacked,
                                      .router = "router",
                                      .router_bias = true,
                                      .gate = "gate_up_proj",
                                      .up = {},
                                      .count_key = "num_local_experts",
                                      .size_key = "intermediate_size"};

// Biases of q, k, v; of o; of the MLP; then what is not as in Llama.
constexpr std::array<FamilySpec, 31> table{{
    {llama, "llama", "LlamaForCausalLM", norms_before, attention_bias, attention_bias, mlp_bias},
    {qwen2, "qwen2", "Qwen2ForCausalLM", norms_before, always},
    {qwen3, "qwen3", "Qwen3ForCausalLM", norms_before, attention_bias, attention_bias, {}, per_head},
    {mistral, "mistral", "MistralForCausalLM", norms_before},
    {ministral, "ministral", "MinistralForCausalLM", norms_before},
    {ministral3, "ministral3", "Ministral3ForCausalLM", norms_before},
    {.family = smollm3,
     .model_type = "smollm3",
     .architecture = "SmolLM3ForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .mlp_bias = mlp_bias,
     .tied = true},
    {granite, "granite", "GraniteForCausalLM", norms_before, attention_bias, attention_bias, mlp_bias},
    {helium, "helium", "HeliumForCausalLM", norms_before, attention_bias, {}, mlp_bias},
    {cwm, "cwm", "CwmForCausalLM", norms_before, {}, {}, mlp_bias},
    {.family = seed_oss,
     .model_type = "seed_oss",
     .architecture = "SeedOssForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias_or,
     .attention_output_bias = {"attention_out_bias", false},
     .mlp_bias = mlp_bias,
     .head_dim = 128},
    {.family = ernie4_5,
     .model_type = "ernie4_5",
     .architecture = "Ernie4_5ForCausalLM",
     .layer = norms_before,
     .attention_bias = use_bias,
     .attention_output_bias = use_bias,
     .mlp_bias = use_bias,
     .tied = true,
     .head_dim = 128},
    {.family = gemma,
     .model_type = "gemma",
     .architecture = "GemmaForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .tied = true,
     .head_dim = 256},
    {.family = gemma2,
     .model_type = "gemma2",
     .architecture = "Gemma2ForCausalLM",
     .layer = gemma_norms,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .tied = true,
     .head_dim = 256},
    {.family = gemma3_text,
     .model_type = "gemma3_text",
     .architecture = "Gemma3ForCausalLM",
     .layer = gemma_norms,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .query_norms = per_head,
     .tied = true,
     .head_dim = 256},
    {olmo2, "olmo2", "Olmo2ForCausalLM", norms_behind, attention_bias, attention_bias, {}, whole},
    {olmo3, "olmo3", "Olmo3ForCausalLM", norms_behind, attention_bias, attention_bias, {}, whole},
    {exaone4, "exaone4", "Exaone4ForCausalLM", norms_behind, {}, {}, {}, per_head},
    {.family = phi3,
     .model_type = "phi3",
     .architecture = "Phi3ForCausalLM",
     .layer = norms_before,
     .fused_qkv = true,
     .fused_gate_up = true},
    {.family = glm,
     .model_type = "glm",
     .architecture = "GlmForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias_or,
     .fused_gate_up = true,
     .head_dim = 128},
    {.family = glm4,
     .model_type = "glm4",
     .architecture = "Glm4ForCausalLM",
     .layer = glm4_norms,
     .attention_bias = attention_bias_or,
     .fused_gate_up = true,
     .head_dim = 128},
    {.family = mixtral,
     .model_type = "mixtral",
     .architecture = "MixtralForCausalLM",
     .layer = norms_before,
     .experts = mixtral_experts},
    {.family = olmoe,
     .model_type = "olmoe",
     .architecture = "OlmoeForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .query_norms = whole,
     .experts = olmoe_experts},
    {.family = qwen2_moe,
     .model_type = "qwen2_moe",
     .architecture = "Qwen2MoeForCausalLM",
     .layer = norms_before,
     .attention_bias = {"qkv_bias", true},
     .experts = qwen2_experts},
    {.family = qwen3_moe,
     .model_type = "qwen3_moe",
     .architecture = "Qwen3MoeForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .query_norms = per_head,
     .experts = qwen3_experts},
    {.family = glm4_moe,
     .model_type = "glm4_moe",
     .architecture = "Glm4MoeForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .query_norms = per_head,
     .has_query_norms = {"use_qk_norm", false},
     .predictors = 1,
     .experts = deepseek_v3_experts},
    {.family = dots1,
     .model_type = "dots1",
     .architecture = "Dots1ForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .query_norms = per_head,
     .experts = deepseek_v3_experts},
    {.family = glm4_moe_lite,
     .model_type = "glm4_moe_lite",
     .architecture = "Glm4MoeLiteForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .latent_attention = true,
     .predictors = 1,
     .experts = deepseek_v3_experts},
    {.family = deepseek_v2,
     .model_type = "deepseek_v2",
     .architecture = "DeepseekV2ForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .mlp_bias = mlp_bias,
     .latent_attention = true,
     .experts = deepseek_v2_experts},
    {.family = deepseek_v3,
     .model_type = "deepseek_v3",
     .architecture = "DeepseekV3ForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias,
     .attention_output_bias = attention_bias,
     .latent_attention = true,
     .predictors = 1,
     .experts = deepseek_v3_experts},
    {.family = gpt_oss,
     .model_type = "gpt_oss",
     .architecture = "GptOssForCausalLM",
     .layer = norms_before,
     .attention_bias = attention_bias_or,
     .attention_output_bias = attention_bias_or,
     .sinks = true,
     .head_dim = 64,
     .experts = gpt_oss_experts},
}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i].family != static_cast<Family>(i)) return false;
  }
  return true;
}
static_assert(in_order());

}  // namespace

std::span<const FamilySpec> families() noexcept {
  return table;
}

const FamilySpec& spec_of(Family family) noexcept {
  return table[static_cast<std::size_t>(family)];
}

std::string_view name(Family family) noexcept {
  return spec_of(family).model_type;
}

}  // namespace weightcast
