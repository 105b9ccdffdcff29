#include "weightcast/model/parameter_rules.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/match_checkpoint.hpp"

namespace weightcast {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

Model named(const std::string& shape) {
  return build_model(load_model_config(shape));
}

const ParameterRule& rule(const Model& model, const std::string& name) {
  const auto index = model.find(name);
  if (index < 0) throw std::out_of_range(name);
  return model.parameters[static_cast<std::size_t>(index)];
}
const ParameterRule& in_layer(const Model& model, const std::string& name) {
  return rule(model, "model.layers.0." + name);
}

TEST(Model, SizesOfTheTable) {
  const auto check = [](const std::string& shape, std::size_t parameters, std::uint64_t bytes) {
    const Model model = named(shape);
    EXPECT_EQ(model.parameters.size(), parameters) << shape;
    EXPECT_EQ(model.size_bytes(), bytes) << shape;
  };
  check("llama-3.2-1b", 146, 2'471'628'800);
  check("llama-3.1-8b", 291, 16'060'522'496);
  check("smollm2-135m", 272, 269'030'016);
  check("tiny", 30, 224'128);
  check("moe-20k", 2 + 52 * (9 + 3 * 128), 1'334'635'520);
}

TEST(Model, CanonicalOrder) {
  ModelConfig config = load_model_config("tiny");
  config.layers = 1;
  const auto names = [](const Model& model) {
    std::vector<std::string> result;
    for (const auto& parameter : model.parameters) result.push_back(parameter.info.name);
    return result;
  };
  EXPECT_THAT(names(build_model(config)),
              ElementsAre("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                          "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                          "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                          "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
                          "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
                          "model.norm.weight", "lm_head.weight"));
  EXPECT_EQ(in_layer(build_model(config), "self_attn.k_proj.weight").engine_tensor,
            "model.layers.0.self_attn.qkv_proj.weight");
  EXPECT_EQ(in_layer(build_model(config), "mlp.up_proj.weight").engine_tensor,
            "model.layers.0.mlp.gate_up_proj.weight");
}

TEST(Model, ParametersOfTheFamilies) {
  ModelConfig config = load_model_config("tiny");
  const auto has = [&](const std::string& name) { return build_model(config).find("model.layers.2." + name) >= 0; };
  EXPECT_FALSE(has("self_attn.q_proj.bias") || has("self_attn.q_norm.weight") || has("mlp.up_proj.bias"));
  config.family = Family::qwen2;
  config.attention_bias = true;
  EXPECT_TRUE(has("self_attn.q_proj.bias") && has("self_attn.k_proj.bias") && has("self_attn.v_proj.bias"));
  EXPECT_FALSE(has("self_attn.o_proj.bias"));
  config.family = Family::qwen3;
  config.attention_bias = false;
  EXPECT_TRUE(has("self_attn.q_norm.weight") && has("self_attn.k_norm.weight"));
  const Model qwen3 = build_model(config);
  EXPECT_EQ(in_layer(qwen3, "self_attn.k_norm.weight").info.shape, (std::vector<std::uint64_t>{config.head_dim}));
  EXPECT_EQ(in_layer(qwen3, "self_attn.k_norm.weight").kind, ShardKind::replicated);
  config.family = Family::llama;
  config.attention_bias = config.attention_output_bias = config.mlp_bias = true;
  EXPECT_TRUE(has("self_attn.o_proj.bias") && has("mlp.gate_proj.bias") && has("mlp.down_proj.bias"));
  const Model llama = build_model(config);
  EXPECT_EQ(in_layer(llama, "self_attn.o_proj.bias").kind, ShardKind::replicated);
  EXPECT_EQ(in_layer(llama, "mlp.down_proj.bias").kind, ShardKind::replicated);
  EXPECT_EQ(in_layer(llama, "mlp.up_proj.bias").kind, ShardKind::rows);
}

/// The names of the parameters, and how each is cut, of a config.json of that family.
std::vector<std::string> parameters(std::string_view family, const std::string& extra) {
  const auto config = parse_model_config(
      fmt::format(
          R"({{"model_type": "{}", "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 72, "head_dim": 8,
                      "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 203,
                      "tie_word_embeddings": false{}}})",
          family, extra),
      "config.json");
  std::vector<std::string> result;
  for (const auto& p : build_model(config).parameters) {
    result.push_back(fmt::format("{} {} {} {} {}", p.info.name, fmt::join(p.info.shape, "x"), p.engine_tensor, p.part,
                                 name(p.kind)));
  }
  return result;
}

TEST(Model, LlamaByAnotherName) {
  const std::string attention = R"(, "attention_bias": true)", mlp = R"(, "mlp_bias": true)", both = attention + mlp;
  for (const std::string family : {"mistral", "ministral", "ministral3", "smollm3", "granite", "helium", "cwm"}) {
    EXPECT_EQ(parameters(family, ""), parameters("llama", "")) << family;
  }
  for (const std::string family : {"smollm3", "granite"}) {
    EXPECT_EQ(parameters(family, both), parameters("llama", both)) << family;
    EXPECT_EQ(parameters(family, attention), parameters("llama", attention)) << family;
    EXPECT_EQ(parameters(family, mlp), parameters("llama", mlp)) << family;
  }
  for (const std::string family : {"mistral", "ministral", "ministral3"}) {
    EXPECT_EQ(parameters(family, both), parameters("llama", "")) << family;
  }
  EXPECT_EQ(parameters("cwm", both), parameters("llama", mlp));
  EXPECT_EQ(parameters("helium", attention), parameters("qwen2", ""));  // of q, k and v, not of o
  EXPECT_NE(parameters("llama", both), parameters("llama", ""));
}

TEST(MatchCheckpoint, ABiasThatAFamilyCannotHave) {
  ModelConfig config = load_model_config("tiny");
  config.family = Family::mistral;
  const Model model = build_model(config);
  std::vector<TensorInfo> tensors;
  for (const auto& parameter : model.parameters) tensors.push_back(parameter.info);
  tensors.push_back({"model.layers.0.self_attn.q_proj.bias", config.dtype, {64}});
  const auto error = harness::error_of([&] { match_checkpoint(model, tensors, "x"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.what(), HasSubstr("model.layers.0.self_attn.q_proj.bias is unknown to mistral models"));
}

TEST(Model, TiedHeadIsAnAlias) {
  const Model tied = named("smollm2-135m");
  EXPECT_EQ(tied.find("lm_head.weight"), tied.find("model.embed_tokens.weight"));
  const Model own = named("tiny");
  EXPECT_EQ(own.find("lm_head.weight"), 29);
  EXPECT_EQ(own.find("no.such.weight"), -1);
}

TEST(Model, ASizeBeyondAnyModelIsRefused) {
  ModelConfig config = load_model_config("llama-3.1-8b");
  config.intermediate = std::uint64_t{1} << 24;
  EXPECT_THROW(build_model(config), Error);  // 12 TB
  config.intermediate = std::uint64_t{1} << 21;
  EXPECT_NO_THROW(build_model(config));
}

TEST(Model, SizesThatOverflowAreRefused) {
  ModelConfig config = load_model_config("tiny");
  config.heads = config.kv_heads = config.head_dim = config.hidden = std::uint64_t{1} << 24;
  EXPECT_THROW(build_model(config), Error);
  config.heads = config.head_dim = std::uint64_t{1} << 33;
  EXPECT_THROW(build_model(config), Error);
}

// Llama-3.1-8B: H = 32, K = 8, d = 128, I = 14336, V = 128256, hidden 4096.
TEST(Shard, Llama8BOnFourRanks) {
  const Model model = named("llama-3.1-8b");
  for (std::uint64_t t = 0; t < 4; ++t) {
    EXPECT_EQ(shard_of(in_layer(model, "self_attn.q_proj.weight"), 4, t), (Slice{t * 1024, 0, 1024, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "self_attn.k_proj.weight"), 4, t), (Slice{t * 256, 0, 256, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "self_attn.v_proj.weight"), 4, t), (Slice{t * 256, 0, 256, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "self_attn.o_proj.weight"), 4, t), (Slice{0, t * 1024, 4096, 1024}));
    EXPECT_EQ(shard_of(in_layer(model, "mlp.gate_proj.weight"), 4, t), (Slice{t * 3584, 0, 3584, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "mlp.up_proj.weight"), 4, t), (Slice{t * 3584, 0, 3584, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "mlp.down_proj.weight"), 4, t), (Slice{0, t * 3584, 4096, 3584}));
    EXPECT_EQ(shard_of(rule(model, "model.embed_tokens.weight"), 4, t), (Slice{t * 32064, 0, 32064, 4096}));
    EXPECT_EQ(shard_of(rule(model, "lm_head.weight"), 4, t), (Slice{t * 32064, 0, 32064, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "input_layernorm.weight"), 4, t), (Slice{0, 0, 4096, 1}));
    EXPECT_FALSE(is_copy(in_layer(model, "self_attn.k_proj.weight"), 4, t));
    EXPECT_EQ(is_copy(rule(model, "model.norm.weight"), 4, t), t > 0);
  }
}

TEST(Shard, KeyValueHeadsAreSharedByNeighbours) {
  const Model model = named("llama-3.1-8b");
  for (std::uint64_t t = 0; t < 16; ++t) {
    EXPECT_EQ(shard_of(in_layer(model, "self_attn.q_proj.weight"), 16, t), (Slice{t * 256, 0, 256, 4096}));
    EXPECT_EQ(shard_of(in_layer(model, "self_attn.k_proj.weight"), 16, t), (Slice{t / 2 * 128, 0, 128, 4096}));
    EXPECT_EQ(is_copy(in_layer(model, "self_attn.v_proj.weight"), 16, t), t % 2 == 1);
    EXPECT_FALSE(is_copy(in_layer(model, "self_attn.q_proj.weight"), 16, t));
  }
}

TEST(Shard, VocabularyIsPaddedTo64) {
  const Model model = named("tiny");  // 200 rows, 256 with padding
  const ParameterRule& head = rule(model, "lm_head.weight");
  EXPECT_EQ(shard_extent(head, 8, 0), (MatrixShape{32, 64}));
  EXPECT_EQ(shard_of(head, 8, 5), (Slice{160, 0, 32, 64}));
  EXPECT_EQ(shard_of(head, 8, 6), (Slice{192, 0, 8, 64}));
  EXPECT_TRUE(shard_of(head, 8, 7).empty());
  EXPECT_EQ(shard_extent(head, 1, 0), (MatrixShape{256, 64}));
  EXPECT_EQ(shard_of(head, 1, 0), (Slice{0, 0, 200, 64}));
}

TEST(Shard, WhatDoesNotDivideIsNamed) {
  const Model model = named("smollm2-135m");
  for (const auto& parameter : model.parameters) EXPECT_NO_THROW(shard_of(parameter, 3, 2));
  const auto message = [&](const std::string& name, std::uint64_t tp) -> std::string {
    try {
      shard_of(rule(model, name), tp, 0);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message("model.layers.0.self_attn.q_proj.weight", 2),
            "model.layers.0.self_attn.q_proj.weight: 9 attention heads cannot be divided evenly for tp 2");
  EXPECT_THAT(message("model.layers.0.self_attn.k_proj.weight", 2), HasSubstr("3 key/value heads"));
  EXPECT_EQ(message("model.layers.0.self_attn.k_proj.weight", 9), "no error");
  EXPECT_THAT(message("model.layers.0.self_attn.o_proj.weight", 2), HasSubstr("9 attention heads"));
  EXPECT_THAT(message("model.layers.0.mlp.down_proj.weight", 9), HasSubstr("1536 columns"));
  EXPECT_THAT(message("model.layers.0.mlp.gate_proj.weight", 9), HasSubstr("1536 rows"));
  EXPECT_THAT(message("model.embed_tokens.weight", 9), HasSubstr("49152 rows"));
  EXPECT_EQ(message("model.norm.weight", 7), "no error");
  EXPECT_THAT(possible_tp(model), ElementsAre(1, 3));
  EXPECT_THAT(possible_tp(named("tiny")), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(possible_tp(named("llama-3.1-8b")), ElementsAre(1, 2, 4, 8, 16, 32));
}

TEST(Sample, TwelveParametersOfTheSeed) {
  const Model model = named("llama-3.1-8b");
  std::vector<std::string> names;
  for (const auto i : sample_parameters(model)) names.push_back(model.parameters[i].info.name);
  EXPECT_THAT(names,
              ElementsAre("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                          "model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.k_proj.weight",
                          "model.layers.3.self_attn.v_proj.weight", "model.layers.4.self_attn.o_proj.weight",
                          "model.layers.5.mlp.gate_proj.weight", "model.layers.6.mlp.up_proj.weight",
                          "model.layers.7.mlp.down_proj.weight", "model.layers.8.post_attention_layernorm.weight",
                          "model.norm.weight", "lm_head.weight"));
  const Model tiny = named("tiny");
  EXPECT_EQ(tiny.parameters[sample_parameters(tiny)[8]].info.name, "model.layers.2.mlp.down_proj.weight");
  const Model tied = named("smollm2-135m");
  EXPECT_EQ(sample_parameters(tied)[11], 0u);
}

class Match : public testing::Test {
 protected:
  void use(const std::string& shape) {
    model_ = named(shape);
    tensors_.clear();
    for (const auto& parameter : model_.parameters) tensors_.push_back(parameter.info);
    std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  }
  TensorInfo& tensor(const std::string& name) {
    return *std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& info) { return info.name == name; });
  }
  TensorMatch match() { return match_tensors(model_, tensors_, "the checkpoint"); }
  std::string refusal() {
    const auto error = harness::error_of([&] { match(); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    return error.what();
  }

  Model model_;
  std::vector<TensorInfo> tensors_;
};

TEST_F(Match, EveryParameterFindsItsTensor) {
  use("tiny");
  const TensorMatch found = match();
  ASSERT_EQ(found.tensor_index.size(), model_.parameters.size());
  for (std::size_t i = 0; i < found.tensor_index.size(); ++i) {
    EXPECT_EQ(tensors_[static_cast<std::size_t>(found.tensor_index[i])], model_.parameters[i].info);
  }
  EXPECT_TRUE(found.skipped.empty());
  EXPECT_EQ(found.alias, -1);
}

TEST_F(Match, TiedHeadOneOrBoth) {
  use("smollm2-135m");
  EXPECT_EQ(match().alias, -1);
  const std::vector<std::uint64_t> shape = tensor("model.embed_tokens.weight").shape;
  tensors_.push_back({"lm_head.weight", DType::BF16, shape});
  EXPECT_EQ(match().alias, 272);
  EXPECT_THAT(match().skipped, ElementsAre("lm_head.weight"));
  std::erase_if(tensors_, [](const auto& info) { return info.name == "model.embed_tokens.weight"; });
  EXPECT_EQ(match().tensor_index.front(), 271);
  EXPECT_EQ(match().alias, -1);
  tensors_.pop_back();
  EXPECT_THAT(refusal(), HasSubstr("model.embed_tokens.weight is missing"));
  tensors_.push_back({"model.embed_tokens.weight", DType::BF16, shape});
  tensors_.push_back({"lm_head.weight", DType::F32, shape});
  EXPECT_THAT(refusal(), HasSubstr("lm_head.weight is F32 [49152, 576], expected BF16 [49152, 576]"));
}

TEST_F(Match, RotaryBuffersAreSkipped) {
  use("tiny");
  for (const std::string name : {"model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.cos_cached",
                                 "model.layers.1.self_attn.rotary_emb.sin_cached"}) {
    tensors_.push_back({name, DType::F32, {4}});
  }
  EXPECT_EQ(match().skipped.size(), 3u);
}

TEST_F(Match, EveryDifferenceIsNamed) {
  use("tiny");
  tensor("model.norm.weight").dtype = DType::F16;
  tensor("lm_head.weight").shape = {64, 200};
  tensor("model.layers.1.mlp.up_proj.weight").name = "model.layers.1.mlp.up_proj.weight\x1b[2J";
  tensors_.push_back(tensor("model.embed_tokens.weight"));
  EXPECT_THAT(refusal(), AllOf(HasSubstr("the checkpoint does not fit the model: 5 differences"),
                               HasSubstr("model.norm.weight is F16 [64], expected BF16 [64]"),
                               HasSubstr("lm_head.weight is BF16 [64, 200], expected BF16 [200, 64]"),
                               HasSubstr("model.layers.1.mlp.up_proj.weight is missing"),
                               HasSubstr("model.layers.1.mlp.up_proj.weight\\x1b[2J is unknown to llama models"),
                               HasSubstr("model.embed_tokens.weight appears twice")));
}

TEST_F(Match, ALongListIsCut) {
  use("tiny");
  tensors_.clear();
  const std::string text = refusal();
  EXPECT_THAT(text, HasSubstr("30 differences"));
  EXPECT_THAT(text, HasSubstr("and 10 more"));
}

}  // namespace
}  // namespace weightcast
