#include <fmt/format.h>
#include <fmt/ranges.h>

#include <numeric>

#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {
namespace {

std::string_view torch_name(DType dtype) noexcept {
  return dtype == DType::F32 ? "float32" : dtype == DType::F16 ? "float16" : "bfloat16";
}

/// Lines of a JSON object, a comma behind each.
class Writer {
 public:
  void text(std::string_view key, std::string_view value) { line(key, fmt::format("\"{}\"", value)); }
  void number(std::string_view key, std::uint64_t value) { line(key, fmt::to_string(value)); }
  void flag(const Flag& rule, bool value) {
    if (!rule.key.empty() && lines_.find(fmt::format("\"{}\"", rule.key)) == std::string::npos)
      line(rule.key, value ? "true" : "false");
  }
  void line(std::string_view key, std::string_view value) { lines_ += fmt::format("  \"{}\": {},\n", key, value); }
  std::string take() { return std::move(lines_); }

 private:
  std::string lines_;
};

void write_experts(Writer& writer, const ExpertsSpec& spec, const ModelConfig& config) {
  const auto& experts = config.experts;
  writer.number(spec.count_key, experts.count);
  if (spec.size_key != "intermediate_size") writer.number(spec.size_key, experts.intermediate);
  if (!spec.shared_size_key.empty()) writer.number(spec.shared_size_key, experts.shared);
  if (!spec.shared_count_key.empty()) writer.number(spec.shared_count_key, experts.shared / experts.intermediate);
  std::vector<std::uint64_t> first(experts.dense_layers.size());
  std::iota(first.begin(), first.end(), 0);
  const bool by_first = spec.count_key == "n_routed_experts";  // which must say how many
  if (by_first) writer.number("first_k_dense_replace", experts.dense_layers == first ? first.size() : 0);
  if (!first.empty() && !(by_first && experts.dense_layers == first))
    writer.line("mlp_only_layers", fmt::format("[{}]", fmt::join(experts.dense_layers, ", ")));
}

}  // namespace

std::string to_config_json(const ModelConfig& config, const EngineFormat& format) {
  const auto& spec = spec_of(config.family);
  Writer writer;
  writer.line("architectures", fmt::format("[\"{}\"]", spec.architecture));
  writer.text("model_type", spec.model_type);
  writer.number("num_hidden_layers", config.layers);
  writer.number("hidden_size", config.hidden);
  writer.number("intermediate_size", config.intermediate);
  writer.number("num_attention_heads", config.heads);
  writer.number("num_key_value_heads", config.kv_heads);
  if (!spec.latent_attention) writer.number("head_dim", config.head_dim);
  writer.number("vocab_size", config.vocabulary);
  writer.text("hidden_act", "silu");
  writer.flag({"tie_word_embeddings"}, config.tied_embeddings);
  writer.flag(spec.attention_bias, config.attention_bias);
  writer.flag(spec.attention_output_bias, config.attention_output_bias);
  writer.flag(spec.mlp_bias, config.mlp_bias);
  writer.flag(spec.has_query_norms, config.query_norms);
  if (spec.latent_attention) {
    if (config.latent.query_rank > 0) writer.number("q_lora_rank", config.latent.query_rank);
    if (config.latent.query_rank == 0) writer.line("q_lora_rank", "null");
    writer.number("kv_lora_rank", config.latent.key_value_rank);
    writer.number("qk_nope_head_dim", config.latent.nope_dim);
    writer.number("qk_rope_head_dim", config.latent.rope_dim);
    writer.number("v_head_dim", config.latent.value_dim);
  }
  if (spec.experts.form != ExpertForm::none) write_experts(writer, spec.experts, config);
  // As checkpoints of such engines say it: what is so marked is never taken for weights that could be rounded.
  if (format.quantization == Quantization::fp8_block) {
    writer.line("quantization_config", R"({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", )"
                                       R"("weight_block_size": [128, 128]})");
  } else if (format.quantization == Quantization::fp8_channel) {
    writer.line("quantization_config", R"({"quant_method": "compressed-tensors", "format": "float-quantized"})");
  }
  if (config.skipped_layers != spec.predictors) writer.number("num_nextn_predict_layers", config.skipped_layers);
  return fmt::format("{{\n{}  \"torch_dtype\": \"{}\"\n}}\n", writer.take(), torch_name(config.dtype));
}

}  // namespace weightcast
