// Models that people have published: what is counted here is what is said of them elsewhere. Sizes are those of their
// config.json; totals come from
// - in_bytes: `metadata.total_size` of model.safetensors.index.json (of gpt-oss-20b that of its conversion to BF16, of
//   Mixtral-8x22B the sum of the shards' headers),
// - in_parameters: what the Hub counts in the safetensors files, or the number that Keras, llama.cpp or transformers
//   gives for the model.
// Numbers of tensors are there where they are published, too.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {
namespace {

struct Sizes {
  int layers, hidden, intermediate, vocabulary, heads, kv_heads, head_dim;
};

/// DeepSeek's keys and values.
const std::string low_rank = R"(, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                                  "v_head_dim": 128)";

Model build(const std::string& family, const Sizes& s, const std::string& keys) {
  const auto text = fmt::format(
      R"({{"model_type": "{}", "num_hidden_layers": {}, "hidden_size": {}, "intermediate_size": {}, "vocab_size": {},
          "num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": {}{}}})",
      family, s.layers, s.hidden, s.intermediate, s.vocabulary, s.heads, s.kv_heads, s.head_dim, keys);
  return build_model(parse_model_config(text, "config.json"));
}

std::uint64_t parameters_of(const Model& model) {
  std::uint64_t sum = 0;
  for (const auto p : model.tensors()) sum += *model.parameters[p].info.elements();
  return sum;
}

enum Unit { in_bytes, in_parameters };

/// `tensors`: 0 where their number is not published.
void same(const std::string& name, Unit unit, std::uint64_t total, std::uint64_t tensors, const std::string& family,
          const Sizes& sizes, const std::string& keys = "") {
  const auto model = build(family, sizes, keys);
  EXPECT_EQ(unit == in_bytes ? model.size_bytes() : parameters_of(model), total) << name;
  EXPECT_EQ(tensors > 0 ? model.tensor_count() : 0, tensors) << name;
}

TEST(PublishedSizes, AreThoseOfTheModels) {
  same("Mixtral-8x7B-v0.1", in_bytes, 93'405'585'408, 0, "mixtral", {32, 4096, 14336, 32000, 32, 8, 128},
       R"(, "num_local_experts": 8)");
  same("Mixtral-8x22B-v0.1", in_bytes, 281'241'268'224, 1739, "mixtral", {56, 6144, 16384, 32000, 48, 8, 128},
       R"(, "num_local_experts": 8)");
  same("OLMoE-1B-7B-0924", in_parameters, 6'919'161'856, 3219, "olmoe", {16, 2048, 1024, 50304, 16, 16, 128},
       R"(, "num_experts": 64)");
  same("Qwen1.5-MoE-A2.7B", in_bytes, 28'631'568'384, 4659, "qwen2_moe", {24, 2048, 5632, 151936, 16, 16, 128},
       R"(, "num_experts": 60, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632)");
  same("Qwen2-57B-A14B", in_parameters, 57'408'658'944, 0, "qwen2_moe", {28, 3584, 18944, 151936, 28, 4, 128},
       R"(, "num_experts": 64, "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20480)");
  same("Qwen3-30B-A3B", in_bytes, 61'064'245'248, 0, "qwen3_moe", {48, 2048, 6144, 151936, 32, 4, 128},
       R"(, "num_experts": 128, "moe_intermediate_size": 768)");
  same("Qwen3-235B-A22B", in_bytes, 470'187'269'120, 36945, "qwen3_moe", {94, 4096, 12288, 151936, 64, 4, 128},
       R"(, "num_experts": 128, "moe_intermediate_size": 1536)");
  same("Qwen3-Coder-480B-A35B", in_parameters, 480'154'875'392, 0, "qwen3_moe", {62, 6144, 8192, 151936, 96, 8, 128},
       R"(, "num_experts": 160, "moe_intermediate_size": 2560)");
  same("DeepSeek-V2-Lite", in_bytes, 31'412'968'448, 0, "deepseek_v2",
       {27, 2048, 10944, 102400, 16, 16, 192}, R"(, "n_routed_experts": 64, "n_shared_experts": 2,
            "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
            "q_lora_rank": null)" + low_rank);
  same("DeepSeek-V2", in_parameters, 235'741'434'880, 0, "deepseek_v2",
       {60, 5120, 12288, 102400, 128, 128, 192}, R"(, "n_routed_experts": 160, "n_shared_experts": 2,
            "moe_intermediate_size": 1536, "first_k_dense_replace": 1,
            "q_lora_rank": 1536)" + low_rank);
  same("gpt-oss-20b in BF16", in_bytes, 41'829'514'368, 0, "gpt_oss", {24, 2880, 2880, 201088, 64, 8, 64},
       R"(, "num_local_experts": 32, "attention_bias": true)");
  same("gpt-oss-120b", in_parameters, 116'829'156'672, 0, "gpt_oss", {36, 2880, 2880, 201088, 64, 8, 64},
       R"(, "num_local_experts": 128, "attention_bias": true)");
  same("gemma-7b", in_parameters, 8'537'680'896, 0, "gemma", {28, 3072, 24576, 256000, 16, 16, 256});
  same("gemma-2-2b", in_bytes, 5'228'683'776, 0, "gemma2", {26, 2304, 9216, 256000, 8, 4, 256});
  same("gemma-2-9b", in_bytes, 18'483'411'968, 464, "gemma2", {42, 3584, 14336, 256000, 16, 8, 256});
  same("gemma-2-27b", in_parameters, 27'227'128'320, 0, "gemma2", {46, 4608, 36864, 256000, 32, 16, 128});
  same("gemma-3-1b", in_parameters, 999'885'952, 0, "gemma3_text", {26, 1152, 6912, 262144, 4, 1, 256});
  same("gemma-3-4b, the language model", in_parameters, 3'880'263'168, 444, "gemma3_text",
       {34, 2560, 10240, 262208, 8, 4, 256});
  same("gemma-3-12b, the language model", in_parameters, 11'766'034'176, 0, "gemma3_text",
       {48, 3840, 15360, 262208, 16, 8, 256});
  same("gemma-3-27b, the language model", in_parameters, 27'009'346'304, 0, "gemma3_text",
       {62, 5376, 21504, 262208, 32, 16, 128});
  same("phi-4", in_bytes, 29'319'014'400, 0, "phi3", {40, 5120, 17920, 100352, 40, 10, 128});
  same("Phi-3-mini", in_bytes, 7'642'159'104, 195, "phi3", {32, 3072, 8192, 32064, 32, 32, 96});
  same("Phi-3-medium-4k", in_parameters, 13'960'238'080, 0, "phi3", {40, 5120, 17920, 32064, 40, 10, 128});
  same("Phi-4-mini", in_parameters, 3'836'021'760, 0, "phi3", {32, 3072, 8192, 200064, 24, 8, 128},
       R"(, "tie_word_embeddings": true)");
  same("OLMo-2-1124-7B", in_parameters, 7'298'617'344, 0, "olmo2", {32, 4096, 11008, 100352, 32, 32, 128});
  same("OLMo-2-1124-13B", in_parameters, 13'716'198'400, 0, "olmo2", {40, 5120, 13824, 100352, 40, 40, 128});
  same("glm-4-9b-chat", in_parameters, 9'399'951'360, 0, "glm", {40, 4096, 13696, 151552, 32, 2, 128},
       R"(, "attention_bias": true)");
  same("GLM-4.6V-Flash, the language model", in_parameters, 9'400'279'040, 0, "glm4",
       {40, 4096, 13696, 151552, 32, 2, 128}, R"(, "attention_bias": true)");
  same("Seed-OSS-36B", in_parameters, 36'151'104'512, 0, "seed_oss", {64, 5120, 27648, 155136, 80, 8, 128},
       R"(, "attention_bias": true, "attention_out_bias": false)");
  same("ERNIE-4.5-0.3B", in_parameters, 360'748'032, 0, "ernie4_5", {18, 1024, 3072, 103424, 16, 2, 128},
       R"(, "use_bias": false)");
  same("Mistral-7B-v0.3", in_bytes, 14'496'047'104, 0, "mistral", {32, 4096, 14336, 32768, 32, 8, 128});
}

TEST(PublishedSizes, OfDeepSeekV3) {
  const auto model = build("deepseek_v3", {61, 7168, 18432, 129280, 128, 128, 192},
                           R"(, "n_routed_experts": 256, "n_shared_experts": 1,
            "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
            "q_lora_rank": 1536)" +
                               low_rank);
  EXPECT_EQ(parameters_of(model) / 1'000'000'000, 671u) << "of the paper (arXiv 2412.19437) and of the model card";
}

TEST(PublishedSizes, OfModelCardsOfGptOss) {
  const auto tenths = [](int layers, int experts) {
    const auto model =
        build("gpt_oss", {layers, 2880, 2880, 201088, 64, 8, 64}, fmt::format(R"(, "num_local_experts": {})", experts));
    return (parameters_of(model) + 50'000'000) / 100'000'000;
  };
  EXPECT_EQ(tenths(24, 32), 209u);
  EXPECT_EQ(tenths(36, 128), 1168u);
}

/// The Hub counts a layer that predicts a second token with the others: a sparse one more, with an embedding and a head
/// of its own, three norms and eh_proj [hidden, 2 hidden].
TEST(PublishedSizes, OfGlm45WithTheLayerThatIsLeftOut) {
  const auto with_one_more = [](Sizes sizes, const std::string& keys) {
    const auto own = parameters_of(build("glm4_moe", sizes, keys));
    ++sizes.layers;
    const std::uint64_t hidden = static_cast<std::uint64_t>(sizes.hidden),
                        vocabulary = static_cast<std::uint64_t>(sizes.vocabulary);
    const auto all =
        parameters_of(build("glm4_moe", sizes, keys)) + 2 * hidden * hidden + 3 * hidden + 2 * vocabulary * hidden;
    return std::pair(own, all);
  };
  // Without it: INTELLECT-3, which is a GLM-4.5-Air that was saved by transformers.
  EXPECT_EQ(with_one_more({46, 4096, 10944, 151552, 96, 8, 128},
                          R"(, "n_routed_experts": 128, "n_shared_experts": 1,
            "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
            "attention_bias": true, "use_qk_norm": false)"),
            (std::pair<std::uint64_t, std::uint64_t>{106'852'251'264, 110'468'824'832}));
  EXPECT_EQ(with_one_more({92, 5120, 12288, 151552, 96, 8, 128},
                          R"(, "n_routed_experts": 160, "n_shared_experts": 1,
            "moe_intermediate_size": 1536, "first_k_dense_replace": 3,
            "attention_bias": true, "use_qk_norm": true)"),
            (std::pair<std::uint64_t, std::uint64_t>{352'797'829'024, 358'337'791'296}));
}

}  // namespace
}  // namespace weightcast
