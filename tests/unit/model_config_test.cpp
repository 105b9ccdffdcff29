#include "weightcast/model/model_config.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::StartsWith;

/// A config.json of SmolLM2's sizes; `extra` goes between its braces.
std::string config_text(const std::string& extra, const std::string& family = R"("model_type": "llama")") {
  return "{" + family +
         R"(, "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152,
    "num_attention_heads": 9)" +
         (extra.empty() ? "" : ", " + extra) + "}";
}
ModelConfig parse(const std::string& text) {
  return parse_model_config(text, "config.json");
}

/// Keys that a config of the family must have besides, each with a comma behind it.
std::string needs(const FamilySpec& spec) {
  std::string keys;
  const auto add = [&](std::string_view key, int value) {
    if (!key.empty() && key != "intermediate_size") keys += fmt::format("\"{}\": {}, ", key, value);
  };
  if (spec.latent_attention) {
    for (const std::string_view key :
         {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"})
      add(key, 24);
  }
  if (spec.experts.form == ExpertForm::none) return keys;
  const auto& experts = spec.experts;
  for (const auto key : {experts.count_key, experts.size_key, experts.shared_size_key}) add(key, 32);
  add(experts.shared_count_key, 2);
  if (experts.count_key == "n_routed_experts") add("first_k_dense_replace", 1);
  return keys;
}
/// The config_text() of any family by its model type.
std::string text_of(const FamilySpec& spec, const std::string& extra) {
  return config_text(extra, fmt::format("{}\"model_type\": \"{}\"", needs(spec), spec.model_type));
}
std::string text_of(Family family, const std::string& extra) {
  return text_of(spec_of(family), extra);
}

void expect_error(ExitCode code, const std::string& part, const std::function<void()>& action) {
  try {
    action();
    FAIL() << "no error; expected one with \"" << part << "\"";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(std::string(error.what()) + "\n" + error.hint(), HasSubstr(part));
  }
}
void expect_refused(ExitCode code, const std::string& part, const std::string& text) {
  SCOPED_TRACE(text);
  expect_error(code, part, [&] { parse(text); });
}

TEST(ModelConfig, MissingValuesAreDerived) {
  const ModelConfig config = parse(config_text(""));
  EXPECT_EQ(config.head_dim, 64u);
  EXPECT_EQ(config.kv_heads, 9u);
  EXPECT_EQ(config.dtype, DType::BF16);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_FALSE(config.attention_bias);
}

TEST(ModelConfig, NullMeansMissing) {
  EXPECT_EQ(parse(config_text(R"("head_dim": null, "num_key_value_heads": null, "torch_dtype": null,
                                 "quantization_config": null, "architectures": null)")),
            parse(config_text("")));
}

TEST(ModelConfig, BothSpellingsOfTheDtype) {
  for (const std::string key : {"torch_dtype", "dtype"}) {
    EXPECT_EQ(parse(config_text("\"" + key + R"(": "float16")")).dtype, DType::F16);
    EXPECT_EQ(parse(config_text("\"" + key + R"(": "torch.float32")")).dtype, DType::F32);
    expect_refused(ExitCode::config, "float8_e4m3fn", config_text("\"" + key + R"(": "float8_e4m3fn")"));
  }
  EXPECT_EQ(parse(config_text(R"("dtype": "float16", "torch_dtype": "float16")")).dtype, DType::F16);
  expect_refused(ExitCode::bad_data, "differ", config_text(R"("dtype": "float16", "torch_dtype": "bfloat16")"));
}

TEST(ModelConfig, TheWeightsSayADtypeThatTheConfigDoesNot) {
  const auto dtype = [](const std::string& extra, DType weights, std::size_t count) {
    std::vector<std::string> notes;
    const auto config = parse_model_config(config_text(extra), "config.json", {weights, &notes});
    EXPECT_EQ(notes.size(), count) << extra;
    return config.dtype;
  };
  EXPECT_EQ(dtype("", DType::F16, 1), DType::F16);
  EXPECT_EQ(dtype(R"("dtype": "auto", "torch_dtype": null)", DType::F32, 1), DType::F32);
  EXPECT_EQ(dtype(R"("dtype": "float32", "torch_dtype": "bfloat16")", DType::BF16, 1), DType::BF16);
  EXPECT_EQ(dtype(R"("dtype": "auto", "torch_dtype": "float16")", DType::F32, 0), DType::F16);
  EXPECT_EQ(dtype(R"("torch_dtype": "bfloat16")", DType::F32, 0), DType::BF16);  // rounded
  EXPECT_EQ(parse(config_text(R"("dtype": "auto")")).dtype, DType::BF16);
  expect_error(ExitCode::config, "float8", [] {
    parse_model_config(config_text(R"("dtype": "float8", "torch_dtype": "bfloat16")"), "c", {DType::BF16, nullptr});
  });
}

TEST(ModelConfig, BothSpellingsOfTheFamily) {
  for (const auto& spec : families()) {
    const std::string by_type = fmt::format(R"("model_type": "{}")", spec.model_type);
    const std::string by_architecture = fmt::format(R"("architectures": ["{}"])", spec.architecture);
    EXPECT_EQ(parse(config_text("", needs(spec) + by_type)).family, spec.family);
    EXPECT_EQ(parse(config_text("", needs(spec) + by_architecture)).family, spec.family);
    EXPECT_EQ(parse(config_text(by_architecture, needs(spec) + by_type)).family, spec.family);
    EXPECT_EQ(spec_of(spec.family).model_type, spec.model_type);
    EXPECT_EQ(name(spec.family), spec.model_type);
  }
  expect_refused(ExitCode::config, "bloom", config_text("", R"("model_type": "bloom")"));
  expect_refused(ExitCode::config, "qwen3", config_text("", R"("model_type": "bloom")"));
  expect_refused(ExitCode::config, "LlamaModel", config_text("", R"("architectures": ["LlamaModel"])"));
  expect_refused(ExitCode::bad_data, "qwen2", config_text(R"("architectures": ["Qwen2ForCausalLM"])"));
  expect_refused(ExitCode::bad_data, "missing", config_text("", R"("pad": 0)"));
  expect_refused(ExitCode::bad_data, "says mistral",
                 config_text(R"("architectures": ["MinistralForCausalLM"])", R"("model_type": "mistral")"));
}

TEST(ModelConfig, AnUnknownFamilyNamesTheNearestAndAll) {
  const auto hint = [](const std::string& family) {
    try {
      parse(config_text("", family));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config) << family;
      return error.hint();
    }
    return std::string("no error");
  };
  for (const auto& [written, meant] : {std::pair{"lama", "llama"},
                                       {"Mistral", "mistral"},
                                       {"mistrall", "mistral"},
                                       {"mixtrall", "mixtral"},
                                       {"deepseekv3", "deepseek_v3"},
                                       {"gpt-oss", "gpt_oss"},
                                       {"smollm", "smollm3"},
                                       {"gwen3", "qwen3"}}) {
    EXPECT_THAT(hint(fmt::format(R"("model_type": "{}")", written)),
                StartsWith(fmt::format("did you mean {}? supported families: llama, qwen2, ", meant)));
  }
  EXPECT_THAT(hint(R"("architectures": ["MistralForCasualLM"])"), StartsWith("did you mean MistralForCausalLM? "));
  for (const std::string far : {"gpt2", "bloom", "rwkv", ""}) {
    const auto text = hint(R"("model_type": ")" + far + "\"");
    EXPECT_THAT(text, AllOf(StartsWith("supported families: "), HasSubstr("lib/DESIGN.md")));
    for (const auto& spec : families()) EXPECT_THAT(text, ContainsRegex(fmt::format(R"( {}[,;])", spec.model_type)));
  }
  const auto text = hint(R"("architectures": ["RwkvForCausalLM"])");
  for (const auto& spec : families()) EXPECT_THAT(text, ContainsRegex(fmt::format(R"( {}[,;])", spec.architecture)));
}

TEST(ModelConfig, AWrapperKeepsTheNameOfWhatItWraps) {
  const auto family = [](const std::string& architecture, const std::string& type) {
    return parse(config_text(R"("architectures": [")" + architecture + "\"]", type)).family;
  };
  const std::string none = R"("pad": 0)", llama = R"("model_type": "llama")", qwen3 = R"("model_type": "qwen3")";
  EXPECT_EQ(family("FSDPLlamaForCausalLM", none), Family::llama);
  EXPECT_EQ(family("FSDPQwen3ForCausalLM", qwen3), Family::qwen3);
  EXPECT_EQ(family("MyLlamaForCausalLM", llama), Family::llama);
  EXPECT_EQ(family("LlamaModel", llama), Family::llama);
  EXPECT_EQ(family("PeftModelForCausalLM", qwen3), Family::qwen3);
  const auto refused = [&](ExitCode code, const std::string& architecture, const std::string& type) {
    expect_refused(code, "architectures", config_text(R"("architectures": [")" + architecture + "\"]", type));
  };
  refused(ExitCode::config, "MyLlamaForCausalLM", none);
  refused(ExitCode::config, "PeftModelForCausalLM", none);
  refused(ExitCode::config, "FSDPBloomForCausalLM", llama);
  refused(ExitCode::bad_data, "FSDPMixtralForCausalLM", llama);
  refused(ExitCode::config, "LlamaForSequenceClassification", llama);
  refused(ExitCode::config, "FSDP", llama);
  refused(ExitCode::bad_data, "FSDPQwen2ForCausalLM", llama);
}

TEST(ModelConfig, WhatIsNotNeededMayBeOdd) {
  for (const std::string odd :
       {R"("time_step_limit": [0.0, Infinity])", R"("x": NaN)", R"("x": -Infinity, "y":NaN)", R"("x": 1, "x": 2)",
        R"("x": {"y": 1, "y": [NaN]}, "x": "NaN")", R"("x": 1000000000000000019884624838656)",
        R"("x": "a\" Infinity, \\", "y": Infinity)"}) {
    EXPECT_EQ(parse(config_text(odd)), parse(config_text(""))) << odd;
  }
  for (const std::string odd :
       {R"("head_dim": NaN)", R"("head_dim": Infinity)", R"("head_dim": 64, "head_dim": 64)",
        R"("head_dim": 1000000000000000019884624838656)", R"("tie_word_embeddings": NaN)", R"("dtype": Infinity)",
        R"("x": nan)", R"("x": 1NaN)", R"("x": NaNx)", R"("x": +Infinity)", R"(NaN: 1)", R"("x": --Infinity)"}) {
    expect_refused(ExitCode::bad_data, "", config_text(odd));
  }
  expect_refused(ExitCode::config, "quantization_config",
                 config_text(R"("quantization_config": {"bits": 4}, "quantization_config": null)"));
}

TEST(ModelConfig, BiasesByFamily) {
  // Without keys, with all of them false, and with all true: of q, k and v; of o; of the MLP.
  struct Biases {
    bool attention, output, mlp;
    bool operator==(const Biases&) const = default;
  };
  const auto biases = [](Family family, const std::string& extra) {
    const auto config = parse(text_of(family, extra));
    return Biases{config.attention_bias, config.attention_output_bias, config.mlp_bias};
  };
  const auto keys = [](const std::string& value) {
    std::string text;
    for (const std::string key : {"attention_bias", "attention_out_bias", "mlp_bias", "use_bias", "qkv_bias"})
      text += fmt::format("{}\"{}\": {}", text.empty() ? "" : ", ", key, value);
    return text;
  };
  constexpr Biases none{false, false, false}, of_q_k_v{true, false, false}, of_attention{true, true, false},
      all{true, true, true};
  std::set<Family> seen;
  for (const auto& [family, plain, refused, asked] : {std::tuple{Family::llama, none, none, all},
                                                      {Family::qwen2, of_q_k_v, of_q_k_v, of_q_k_v},
                                                      {Family::qwen3, none, none, of_attention},
                                                      {Family::mistral, none, none, none},
                                                      {Family::ministral, none, none, none},
                                                      {Family::ministral3, none, none, none},
                                                      {Family::smollm3, none, none, all},
                                                      {Family::granite, none, none, all},
                                                      {Family::helium, none, none, Biases{true, false, true}},
                                                      {Family::cwm, none, none, Biases{false, false, true}},
                                                      {Family::seed_oss, of_q_k_v, none, all},
                                                      {Family::ernie4_5, none, none, all},
                                                      {Family::gemma, none, none, of_attention},
                                                      {Family::gemma2, none, none, of_attention},
                                                      {Family::gemma3_text, none, none, of_attention},
                                                      {Family::olmo2, none, none, of_attention},
                                                      {Family::olmo3, none, none, of_attention},
                                                      {Family::exaone4, none, none, none},
                                                      {Family::phi3, none, none, none},
                                                      {Family::glm, of_q_k_v, none, of_q_k_v},
                                                      {Family::glm4, of_q_k_v, none, of_q_k_v},
                                                      {Family::mixtral, none, none, none},
                                                      {Family::olmoe, none, none, of_attention},
                                                      {Family::qwen2_moe, of_q_k_v, none, of_q_k_v},
                                                      {Family::qwen3_moe, none, none, of_attention},
                                                      {Family::glm4_moe, none, none, of_q_k_v},
                                                      {Family::dots1, none, none, of_attention},
                                                      {Family::glm4_moe_lite, none, none, of_attention},
                                                      {Family::deepseek_v2, none, none, all},
                                                      {Family::deepseek_v3, none, none, of_attention},
                                                      {Family::gpt_oss, of_attention, none, of_attention}}) {
    EXPECT_EQ(biases(family, ""), plain) << name(family);
    EXPECT_EQ(biases(family, keys("false")), refused) << name(family);
    EXPECT_EQ(biases(family, keys("true")), asked) << name(family);
    seen.insert(family);
  }
  EXPECT_EQ(seen.size(), families().size());
  EXPECT_EQ(biases(Family::seed_oss, R"("attention_out_bias": true)"), of_attention);
}

TEST(ModelConfig, HeadSizesByFamily) {
  std::set<Family> own;
  for (const auto& spec : families()) {
    if (spec.latent_attention) {
      EXPECT_EQ(parse(text_of(spec, R"("head_dim": 24)")).head_dim, 48u) << "with and without rotary embeddings";
      continue;
    }
    EXPECT_EQ(parse(text_of(spec, R"("head_dim": 32)")).head_dim, 32u) << spec.model_type;
    const auto without = parse(text_of(spec, "")).head_dim;
    EXPECT_EQ(parse(text_of(spec, R"("head_dim": null)")).head_dim, without) << spec.model_type;
    if (without != 64) own.insert(spec.family);
    if (own.contains(spec.family)) {
      EXPECT_EQ(without, spec.model_type.starts_with("gemma") ? 256u : 128u) << spec.model_type;
    }
  }
  EXPECT_EQ(own, (std::set{Family::gemma, Family::gemma2, Family::gemma3_text, Family::glm, Family::glm4,
                           Family::seed_oss, Family::ernie4_5}));
  const auto gpt_oss = config_text("", needs(spec_of(Family::gpt_oss)) + R"("model_type": "gpt_oss")");
  EXPECT_EQ(parse(std::string(gpt_oss).replace(gpt_oss.find("576"), 3, "288")).head_dim, 64u);
}

TEST(ModelConfig, TiedWhereTheConfigSaysNothing) {
  const std::set tied{Family::smollm3, Family::ernie4_5, Family::gemma, Family::gemma2, Family::gemma3_text};
  for (const auto& spec : families()) {
    EXPECT_EQ(parse(text_of(spec, "")).tied_embeddings, tied.contains(spec.family)) << spec.model_type;
    EXPECT_TRUE(parse(text_of(spec, R"("tie_word_embeddings": true)")).tied_embeddings) << spec.model_type;
    EXPECT_FALSE(parse(text_of(spec, R"("tie_word_embeddings": false)")).tied_embeddings) << spec.model_type;
  }
}

TEST(ModelConfig, NormsOfQueriesWhereTheConfigMaySayNone) {
  EXPECT_FALSE(parse(text_of(Family::glm4_moe, "")).query_norms);
  EXPECT_TRUE(parse(text_of(Family::glm4_moe, R"("use_qk_norm": true)")).query_norms);
  EXPECT_TRUE(parse(text_of(Family::dots1, R"("use_qk_norm": false)")).query_norms);
}

TEST(ModelConfig, ExpertsAreCountedUnderEitherKey) {
  for (const auto& spec : families()) {
    if (spec.experts.form == ExpertForm::none) {
      EXPECT_EQ(parse(text_of(spec, R"("num_local_experts": 8)")).experts, ExpertSizes{}) << spec.model_type;
      continue;
    }
    EXPECT_EQ(parse(text_of(spec, "")).experts.count, 32u) << spec.model_type;
    const auto count = fmt::format("\"{}\": 32", spec.experts.count_key);
    auto text = text_of(spec, "");
    text.replace(text.find(count), count.size(), R"("num_local_experts": 16)");
    EXPECT_EQ(parse(text).experts.count, 16u) << spec.model_type;
    text.replace(text.find("\"num_local_experts\": 16"), 23, R"("pad": 0)");
    expect_refused(ExitCode::bad_data, fmt::format("\"{}\" is missing", spec.experts.count_key), text);
    if (spec.experts.count_key == "num_local_experts") continue;
    EXPECT_EQ(parse(text_of(spec, R"("num_local_experts": 32)")).experts.count, 32u) << spec.model_type;
    expect_refused(ExitCode::bad_data,
                   fmt::format("\"{}\" is 32, and \"num_local_experts\" is 16", spec.experts.count_key),
                   text_of(spec, R"("num_local_experts": 16)"));
  }
  expect_refused(ExitCode::bad_data, "\"num_local_experts\" is 10001",
                 text_of(Family::qwen3_moe, R"("num_local_experts": 10001)"));
}

TEST(ModelConfig, WhatIsSharedBesideExperts) {
  EXPECT_EQ(parse(text_of(Family::qwen2_moe, "")).experts.shared, 32u);
  EXPECT_EQ(parse(text_of(Family::deepseek_v2, "")).experts.shared, 64u) << "2 of 32";
  auto text = text_of(Family::deepseek_v3, "");
  const auto key = text.find("\"n_shared_experts\": 2");
  EXPECT_EQ(parse(std::string(text).replace(key, 21, "\"n_shared_experts\": null")).experts.shared, 0u);
  EXPECT_EQ(parse(std::string(text).replace(key, 21, "\"n_shared_experts\": 0")).experts.shared, 0u);
  expect_refused(ExitCode::bad_data, "n_shared_experts",
                 std::string(text).replace(key, 21, "\"n_shared_experts\": 1000000"));
}

TEST(ModelConfig, WhichLayersHaveNoExperts) {
  using Layers = std::vector<std::uint64_t>;
  const auto dense = [](Family family, const std::string& extra) {
    auto text = text_of(family, extra);
    text.replace(text.find("\"num_hidden_layers\": 30"), 23, "\"num_hidden_layers\": 6");
    return parse(text).experts.dense_layers;
  };
  EXPECT_EQ(dense(Family::mixtral, ""), Layers{});
  EXPECT_EQ(dense(Family::qwen3_moe, ""), Layers{});
  EXPECT_EQ(dense(Family::qwen3_moe, R"("mlp_only_layers": [5, 2], "decoder_sparse_step": 1)"), (Layers{2, 5}));
  EXPECT_EQ(dense(Family::qwen2_moe, R"("decoder_sparse_step": 2, "mlp_only_layers": [])"), (Layers{0, 2, 4}));
  EXPECT_EQ(dense(Family::qwen2_moe, R"("decoder_sparse_step": 3, "mlp_only_layers": [2])"), (Layers{0, 1, 2, 3, 4}));
  EXPECT_EQ(dense(Family::deepseek_v3, ""), Layers{0});
  EXPECT_EQ(dense(Family::deepseek_v2, R"("moe_layer_freq": 1)"), Layers{0});
  EXPECT_EQ(dense(Family::deepseek_v2, R"("moe_layer_freq": 2)"), (Layers{0, 1, 3, 5}));
  const std::string types = R"("mlp_layer_types": ["dense", "sparse", "sparse", "dense", "sparse", "sparse"])";
  EXPECT_EQ(dense(Family::glm4_moe_lite, types), (Layers{0, 3})) << "before what another key says";
  for (const auto family : {Family::deepseek_v2, Family::deepseek_v3, Family::glm4_moe, Family::dots1}) {
    auto text = text_of(family, "");
    text.replace(text.find("\"first_k_dense_replace\": 1"), 26, R"("pad": 0)");
    expect_refused(ExitCode::bad_data, "\"first_k_dense_replace\" is missing", text);
  }
  expect_refused(ExitCode::bad_data, "\"mlp_layer_types\" has 6 entries for 30 layers",
                 text_of(Family::glm4_moe_lite, types));
  expect_refused(ExitCode::bad_data, "decoder_sparse_step", text_of(Family::qwen3_moe, R"("decoder_sparse_step": 0)"));
  expect_refused(ExitCode::bad_data, "mlp_only_layers", text_of(Family::qwen3_moe, R"("mlp_only_layers": 1)"));
}

TEST(ModelConfig, QueriesOfLowRankAreSaidOrDenied) {
  for (const auto family : {Family::deepseek_v2, Family::deepseek_v3, Family::glm4_moe_lite}) {
    const auto text = text_of(family, "");
    const auto key = text.find("\"q_lora_rank\": 24");
    EXPECT_EQ(parse(text).latent, (LatentSizes{24, 24, 24, 24, 24}));
    EXPECT_EQ(parse(std::string(text).replace(key, 17, "\"q_lora_rank\": null")).latent,
              (LatentSizes{0, 24, 24, 24, 24}));
    expect_refused(ExitCode::bad_data, "\"q_lora_rank\" is missing", std::string(text).replace(key, 17, "\"pad\": 1"));
    expect_refused(ExitCode::bad_data, "q_lora_rank", std::string(text).replace(key, 17, "\"q_lora_rank\": 0"));
    for (const std::string other : {"kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}) {
      auto without = text;
      without.replace(without.find("\"" + other), other.size() + 1, "\"pad");
      expect_refused(ExitCode::bad_data, other + "\" is missing", without);
    }
  }
}

TEST(ModelConfig, RoutersOfACheckpointMayBeWide) {
  const auto wide = [](Family family, const std::string& extra) {
    return parse_model_config(text_of(family, extra), "config.json", {.wide_routers = true}).wide_routers;
  };
  EXPECT_TRUE(wide(Family::deepseek_v3, ""));
  EXPECT_FALSE(wide(Family::deepseek_v3, R"("dtype": "float32")")) << "then all is";
  EXPECT_FALSE(wide(Family::llama, "")) << "it has no router";
  EXPECT_FALSE(parse(text_of(Family::deepseek_v3, "")).wide_routers);
}

TEST(ModelConfig, LayersThatPredictFurtherTokensAreCounted) {
  const std::set with_one{Family::deepseek_v3, Family::glm4_moe, Family::glm4_moe_lite};
  for (const auto& spec : families()) {
    EXPECT_EQ(parse(text_of(spec, "")).skipped_layers, with_one.contains(spec.family) ? 1u : 0u) << spec.model_type;
    EXPECT_EQ(parse(text_of(spec, R"("num_nextn_predict_layers": 0)")).skipped_layers, 0u) << spec.model_type;
  }
  EXPECT_EQ(parse(text_of(Family::deepseek_v3, R"("num_nextn_predict_layers": 2)")).skipped_layers, 2u);
}

/// A config of a model that has a language model inside: `outer` and `inner` are their keys.
ModelConfig parse_inside(const std::string& outer, const std::string& inner,
                         std::vector<std::string>* notes = nullptr) {
  return parse_model_config(
      "{" + outer + R"(, "vision_config": {"hidden_size": 32, "model_type": "x"}, "text_config": {)" + inner + "}}",
      "config.json", {std::nullopt, notes});
}

TEST(ModelConfig, TheLanguageModelInsideAnother) {
  const std::string sizes =
      R"("num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 203,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "model_type": )";
  std::vector<std::string> notes;
  const auto config = parse_inside(R"("model_type": "gemma3", "dtype": "float16")", sizes + R"("gemma3_text")", &notes);
  EXPECT_EQ(config, (ModelConfig{.family = Family::gemma3_text,
                                 .layers = 3,
                                 .hidden = 64,
                                 .heads = 8,
                                 .kv_heads = 4,
                                 .head_dim = 16,
                                 .intermediate = 96,
                                 .vocabulary = 203,
                                 .tied_embeddings = true,
                                 .dtype = DType::F16,
                                 .inside = true}));
  EXPECT_THAT(notes, testing::ElementsAre("config.json: of gemma3 the language model, which is gemma3_text"));
  // Any family, whatever is around it.
  const auto moe = parse_inside(R"("model_type": "any_vl")", sizes + R"("qwen3_moe", "num_experts": 8,
                                "moe_intermediate_size": 32)");
  EXPECT_EQ(moe.family, Family::qwen3_moe);
  EXPECT_EQ(moe.experts.count, 8u);
  expect_error(ExitCode::config, "bloom", [&] { parse_inside(R"("model_type": "gemma3")", sizes + R"("bloom")"); });
  expect_error(ExitCode::bad_data, "config.json: text_config: \"hidden_size\" is missing", [&] {
    parse_inside(R"("model_type": "any_vl", "hidden_size": 64)", R"("model_type": "olmo2", "num_hidden_layers": 1)");
  });
  expect_refused(ExitCode::bad_data, "\"text_config\" appears twice",
                 R"({"text_config": {"model_type": "llama"}, "text_config": {"model_type": "llama"}})");
}

TEST(ModelConfig, WhatBothSayTheLargerModelDecides) {
  const auto tied = [](const std::string& outer, const std::string& inner) {
    return parse_inside(R"("model_type": "mistral3")" + outer, R"("model_type": "mistral")" + inner).tied_embeddings;
  };
  const std::string yes = R"(, "tie_word_embeddings": true)", no = R"(, "tie_word_embeddings": false)";
  EXPECT_TRUE(tied(yes, no));
  EXPECT_FALSE(tied(no, yes));
  EXPECT_TRUE(tied("", yes));
  EXPECT_FALSE(tied("", no));
  EXPECT_FALSE(tied("", ""));
  const auto dtype = [](const std::string& outer, const std::string& inner) {
    return parse_inside(R"("model_type": "mistral3")" + outer, R"("model_type": "mistral")" + inner).dtype;
  };
  const std::string half = R"(, "torch_dtype": "float16")", full = R"(, "dtype": "float32")";
  EXPECT_EQ(dtype(half, ""), DType::F16);
  EXPECT_EQ(dtype("", full), DType::F32);
  EXPECT_EQ(dtype(half, full), DType::F32);
}

TEST(ModelConfig, WhatATextConfigLeavesOutIsItsClassDefault) {
  // As google/gemma-3-4b-it and llava-hf/llava-1.5-7b-hf have them: configs of transformers 4 leave out what is
  // default.
  EXPECT_EQ(parse_inside(R"("model_type": "gemma3", "torch_dtype": "bfloat16")",
                         R"("hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0}, "sliding_window": 1024)"),
            (ModelConfig{.family = Family::gemma3_text,
                         .layers = 34,
                         .hidden = 2560,
                         .heads = 8,
                         .kv_heads = 4,
                         .head_dim = 256,
                         .intermediate = 10240,
                         .vocabulary = 262208,
                         .tied_embeddings = true,
                         .inside = true}));
  EXPECT_EQ(parse_inside(R"("model_type": "gemma3")", "").layers, 26u) << "not even its type";
  EXPECT_EQ(parse_inside(R"("model_type": "llava", "torch_dtype": "float16")",
                         R"("model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-05)"),
            (ModelConfig{.family = Family::llama,
                         .layers = 32,
                         .hidden = 4096,
                         .heads = 32,
                         .kv_heads = 32,
                         .head_dim = 128,
                         .intermediate = 11008,
                         .vocabulary = 32064,
                         .dtype = DType::F16,
                         .inside = true}));
  const auto mistral = parse_inside(R"("model_type": "mistral3")", R"("model_type": "mistral", "hidden_size": 5120,
                                    "head_dim": 128, "num_hidden_layers": 40, "intermediate_size": 32768,
                                    "vocab_size": 131072)");
  EXPECT_EQ(mistral.heads, 32u);
  EXPECT_EQ(mistral.kv_heads, 8u);
  EXPECT_EQ(mistral.head_dim, 128u);
  const auto qwen2 = parse_inside(R"("model_type": "llava")", R"("model_type": "qwen2", "hidden_size": 896,
                                  "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864)");
  EXPECT_EQ(qwen2.layers, 32u);
  EXPECT_EQ(qwen2.vocabulary, 151936u);
  EXPECT_EQ(qwen2.head_dim, 64u);
  expect_refused(ExitCode::bad_data, "\"num_hidden_layers\" is missing", R"({"model_type": "llama"})");
}

TEST(ModelConfig, NestedKeysAreNotTaken) {
  const std::string nested =
      R"("rope_scaling": {"factor": 32.0, "hidden_size": 1, "rope_type": "llama3", "x": [{"y": []}],
                          "text_config": {"vocab_size": 7, "quantization_config": {}}},
    "vision_config": {"vocab_size": 7, "quantization_config": {}}, "eos_token_id": [1, 2, [3, "s"]])";
  EXPECT_EQ(parse(config_text(nested)), parse(config_text("")));
}

TEST(ModelConfig, ImpossibleValuesNameTheKey) {
  expect_refused(ExitCode::bad_data, "hidden_size", R"({"model_type": "llama", "num_hidden_layers": 1})");
  expect_refused(ExitCode::bad_data, "num_key_value_heads", config_text(R"("num_key_value_heads": 0)"));
  expect_refused(ExitCode::bad_data, "num_key_value_heads", config_text(R"("num_key_value_heads": 2)"));
  expect_refused(ExitCode::bad_data, "num_key_value_heads", config_text(R"("num_key_value_heads": -3)"));
  expect_refused(ExitCode::bad_data, "head_dim", config_text(R"("head_dim": 64.0)"));
  expect_refused(ExitCode::bad_data, "head_dim", config_text(R"("head_dim": "64")"));
  expect_refused(ExitCode::bad_data, "head_dim", config_text(R"("head_dim": 18446744073709551615)"));
  expect_refused(ExitCode::bad_data, "head_dim", config_text(R"("head_dim": [64])"));
  expect_refused(ExitCode::bad_data, "tie_word_embeddings", config_text(R"("tie_word_embeddings": 1)"));
  expect_refused(ExitCode::bad_data, "model_type", config_text("", R"("model_type": ["llama"])"));
  expect_refused(ExitCode::bad_data, "head_dim", R"({"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 10,
    "intermediate_size": 1, "vocab_size": 1, "num_attention_heads": 3})");
  expect_refused(ExitCode::bad_data, "num_hidden_layers", R"({"model_type": "llama", "num_hidden_layers": 10001})");
}

TEST(ModelConfig, QuantisedModelsAreRefused) {
  expect_refused(ExitCode::config, "quantization_config", config_text(R"("quantization_config": {"bits": 4})"));
  expect_refused(ExitCode::config, "compression_config", config_text(R"("compression_config": {})"));
  for (const std::string key : {"quantization_config", "compression_config"}) {
    const auto inner = R"("model_type": "llama", ")" + key + R"(": {"bits": 4})";
    expect_error(ExitCode::config, "config.json: text_config: \"" + key,
                 [&] { parse_inside(R"("model_type": "llava")", inner); });
    expect_error(ExitCode::config, "config.json: \"" + key, [&] {
      parse_inside(R"("model_type": "llava", ")" + key + R"(": {"bits": 4})", R"("model_type": "llama")");
    });
  }
}

TEST(ModelConfig, NotAnObject) {
  for (const std::string text : {"", "[]", "[{\"model_type\": \"llama\"}]", "7", "null", "\"llama\"", "{", "{} {}"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(parse(text), Error);
  }
  expect_refused(ExitCode::bad_data, "vocab_size", config_text(R"("vocab_size": 49152)"));  // twice
}

TEST(ModelConfig, WrittenTextReadsBack) {
  for (const auto& shape : named_shapes()) {
    const ModelConfig config = load_model_config(shape);
    EXPECT_EQ(parse(to_config_json(config)), config) << shape;
  }
  for (const auto& spec : families()) {
    for (const std::string extra :
         {R"("attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true)", R"("tie_word_embeddings": false)",
          R"("head_dim": 32, "dtype": "float32", "num_key_value_heads": 3)",
          R"("attention_bias": false, "attention_out_bias": true, "qkv_bias": false, "use_bias": true)",
          R"("use_qk_norm": true, "num_nextn_predict_layers": 1, "mlp_only_layers": [3, 7])",
          R"("moe_layer_freq": 2, "decoder_sparse_step": 2, "num_nextn_predict_layers": 0)"}) {
      const ModelConfig config = parse(text_of(spec, extra));
      EXPECT_EQ(parse(to_config_json(config)), config) << to_config_json(config);
    }
  }
  auto inside = parse_inside(R"("model_type": "gemma3")", "");
  const auto own = parse(to_config_json(inside));
  EXPECT_FALSE(own.inside);
  inside.inside = false;
  EXPECT_EQ(own, inside);
}

TEST(LoadModelConfig, ByNameByFileAndByFolder) {
  EXPECT_EQ(named_shapes(),
            (std::vector<std::string>{"llama-3.2-1b", "llama-3.1-8b", "smollm2-135m", "tiny", "moe-20k"}));
  const std::string folder = testing::TempDir() + "weightcast_model_config";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder + "/empty");
  write_text_file(folder + "/config.json", config_text(""));
  EXPECT_EQ(load_model_config(folder), parse(config_text("")));
  EXPECT_EQ(load_model_config(folder + "/config.json"), parse(config_text("")));
  for (const std::string file : {"/model.safetensors", "/model.safetensors.index.json"}) {
    expect_error(ExitCode::no_input, "cannot open", [&] { load_model_config(folder + file); });
    write_text_file(folder + file, "");
    EXPECT_EQ(load_model_config(folder + file), parse(config_text("")));
  }
  std::filesystem::create_directories(folder + "/hub/snapshots/abc");
  write_text_file(folder + "/hub/snapshots/abc/config.json", config_text(R"("head_dim": 32)"));
  EXPECT_EQ(load_model_config(folder + "/hub").head_dim, 32u);
  write_text_file(folder + "/hub/snapshots/abc/config.json", "version https://git-lfs.github.com/spec/v1");
  expect_error(ExitCode::bad_data, "git lfs pull", [&] { load_model_config(folder + "/hub"); });
  expect_error(ExitCode::usage, "smollm2-135m", [&] { load_model_config("llama-9"); });
  expect_error(ExitCode::no_input, "empty has no config.json", [&] { load_model_config(folder + "/empty"); });
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace weightcast
