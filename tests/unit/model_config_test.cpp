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

namespace weightcast {
namespace {

using testing::AllOf;
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
    EXPECT_EQ(parse(config_text("", by_type)).family, spec.family);
    EXPECT_EQ(parse(config_text("", by_architecture)).family, spec.family);
    EXPECT_EQ(parse(config_text(by_architecture, by_type)).family, spec.family);
    EXPECT_EQ(spec_of(spec.family).model_type, spec.model_type);
    EXPECT_EQ(name(spec.family), spec.model_type);
  }
  expect_refused(ExitCode::config, "mixtral", config_text("", R"("model_type": "mixtral")"));
  expect_refused(ExitCode::config, "Qwen3ForCausalLM", config_text("", R"("model_type": "mixtral")"));
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
                                       {"smollm", "smollm3"},
                                       {"gwen3", "qwen3"}}) {
    EXPECT_THAT(hint(fmt::format(R"("model_type": "{}")", written)),
                StartsWith(fmt::format("did you mean {}? supported families: llama (Llama", meant)));
  }
  EXPECT_THAT(hint(R"("architectures": ["MistralForCasualLM"])"), StartsWith("did you mean MistralForCausalLM? "));
  for (const std::string far : {"gpt2", "deepseek_v3", "phi3", ""}) {
    const auto text = hint(R"("model_type": ")" + far + "\"");
    EXPECT_THAT(text, AllOf(StartsWith("supported families: "), HasSubstr("lib/DESIGN.md")));
    for (const auto& spec : families()) {
      EXPECT_THAT(text, HasSubstr(fmt::format("{} ({})", spec.model_type, spec.architecture)));
    }
  }
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
  refused(ExitCode::config, "FSDPMixtralForCausalLM", llama);
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
  // Without keys, and with both: of q, k and v; of o; of the MLP.
  struct Biases {
    bool attention, output, mlp;
    bool operator==(const Biases&) const = default;
  };
  const auto biases = [](Family family, const std::string& extra) {
    const auto config = parse(config_text(extra, fmt::format(R"("model_type": "{}")", name(family))));
    return Biases{config.attention_bias, config.attention_output_bias, config.mlp_bias};
  };
  std::set<Family> seen;
  for (const auto& [family, plain, asked] :
       {std::tuple{Family::llama, Biases{false, false, false}, Biases{true, true, true}},
        {Family::qwen2, {true, false, false}, {true, false, false}},
        {Family::qwen3, {false, false, false}, {true, true, false}},
        {Family::mistral, {false, false, false}, {false, false, false}},
        {Family::ministral, {false, false, false}, {false, false, false}},
        {Family::ministral3, {false, false, false}, {false, false, false}},
        {Family::smollm3, {false, false, false}, {true, true, true}},
        {Family::granite, {false, false, false}, {true, true, true}},
        {Family::helium, {false, false, false}, {true, false, true}},
        {Family::cwm, {false, false, false}, {false, false, true}}}) {
    EXPECT_EQ(biases(family, ""), plain) << name(family);
    EXPECT_EQ(biases(family, R"("attention_bias": false, "mlp_bias": false)"), plain) << name(family);
    EXPECT_EQ(biases(family, R"("attention_bias": true, "mlp_bias": true)"), asked) << name(family);
    seen.insert(family);
  }
  EXPECT_EQ(seen.size(), families().size());
  EXPECT_EQ(parse(config_text(R"("head_dim": 128)", R"("model_type": "qwen3")")).head_dim, 128u);
  EXPECT_EQ(parse(config_text(R"("head_dim": 128)", R"("model_type": "mistral")")).head_dim, 128u);
}

TEST(ModelConfig, TiedWhereTheConfigSaysNothing) {
  for (const auto& spec : families()) {
    const auto type = fmt::format(R"("model_type": "{}")", spec.model_type);
    EXPECT_EQ(parse(config_text("", type)).tied_embeddings, spec.family == Family::smollm3) << spec.model_type;
    EXPECT_TRUE(parse(config_text(R"("tie_word_embeddings": true)", type)).tied_embeddings) << spec.model_type;
    EXPECT_FALSE(parse(config_text(R"("tie_word_embeddings": false)", type)).tied_embeddings) << spec.model_type;
  }
}

TEST(ModelConfig, NestedKeysAreNotTaken) {
  const std::string nested =
      R"("rope_scaling": {"factor": 32.0, "hidden_size": 1, "rope_type": "llama3", "x": [{"y": []}]},
    "text_config": {"vocab_size": 7, "quantization_config": {}}, "eos_token_id": [1, 2, [3, "s"]])";
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
          R"("head_dim": 32, "dtype": "float32", "num_key_value_heads": 3)"}) {
      const ModelConfig config = parse(config_text(extra, fmt::format(R"("model_type": "{}")", spec.model_type)));
      EXPECT_EQ(parse(to_config_json(config)), config) << to_config_json(config);
    }
  }
}

TEST(LoadModelConfig, ByNameByFileAndByFolder) {
  EXPECT_EQ(named_shapes(), (std::vector<std::string>{"llama-3.2-1b", "llama-3.1-8b", "smollm2-135m", "tiny"}));
  const std::string folder = testing::TempDir() + "weightcast_model_config";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder + "/empty");
  write_text_file(folder + "/config.json", config_text(""));
  EXPECT_EQ(load_model_config(folder), parse(config_text("")));
  EXPECT_EQ(load_model_config(folder + "/config.json"), parse(config_text("")));
  for (const std::string file : {"/model.safetensors", "/model.safetensors.index.json"}) {
    expect_error(ExitCode::usage, "neither", [&] { load_model_config(folder + file); });
    write_text_file(folder + file, "");
    EXPECT_EQ(load_model_config(folder + file), parse(config_text("")));
  }
  std::filesystem::create_directories(folder + "/hub/snapshots/abc");
  write_text_file(folder + "/hub/snapshots/abc/config.json", config_text(R"("head_dim": 32)"));
  EXPECT_EQ(load_model_config(folder + "/hub").head_dim, 32u);
  write_text_file(folder + "/hub/snapshots/abc/config.json", "version https://git-lfs.github.com/spec/v1");
  expect_error(ExitCode::bad_data, "git lfs pull", [&] { load_model_config(folder + "/hub"); });
  expect_error(ExitCode::usage, "smollm2-135m", [&] { load_model_config("llama-9"); });
  expect_error(ExitCode::usage, "empty", [&] { load_model_config(folder + "/empty"); });
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace weightcast
