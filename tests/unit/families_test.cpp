// Every family against checkpoints that transformers saved: data/families.txt says how they were made.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/match_checkpoint.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

struct SavedCheckpoint {
  std::string name, config;
  std::vector<TensorInfo> tensors;  ///< as saved first
  std::vector<TensorInfo> again;    ///< as saved by who has loaded it
};

/// "a.{0-2,5}.b" as a.0.b, a.1.b, a.2.b and a.5.b.
std::vector<std::string> expanded(const std::string& name) {
  const auto open = name.find('{');
  if (open == name.npos) return {name};
  const auto close = name.find('}', open);
  std::vector<std::string> names;
  std::istringstream numbers(name.substr(open + 1, close - open - 1));
  for (std::string range; std::getline(numbers, range, ',');) {
    const auto dash = range.find('-');
    const auto first = std::stoul(range), last = dash == range.npos ? first : std::stoul(range.substr(dash + 1));
    for (auto i = first; i <= last; ++i) {
      for (auto& full : expanded(fmt::format("{}{}{}", name.substr(0, open), i, name.substr(close + 1))))
        names.push_back(std::move(full));
    }
  }
  return names;
}

DType dtype_named(const std::string& text) {
  for (const auto dtype : {DType::BF16, DType::F32}) {
    if (name(dtype) == text) return dtype;
  }
  throw std::invalid_argument(text);
}

std::vector<SavedCheckpoint> read_checkpoints() {
  std::ifstream file(FAMILIES_DATA);
  std::vector<SavedCheckpoint> checkpoints;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with('#')) continue;
    std::istringstream words(line);
    std::string first, dtypes, extents;
    words >> first;
    if (first == "checkpoint") {
      words >> checkpoints.emplace_back().name;
      continue;
    }
    auto& checkpoint = checkpoints.back();
    if (first == "config") {
      checkpoint.config = line.substr(7);
      continue;
    }
    words >> dtypes >> extents;
    std::vector<std::uint64_t> shape;
    std::istringstream numbers(extents);
    for (std::string extent; std::getline(numbers, extent, 'x');) shape.push_back(std::stoul(extent));
    const auto slash = dtypes.find('/');
    const auto saved = dtype_named(dtypes.substr(0, slash)),
               later = slash == dtypes.npos ? saved : dtype_named(dtypes.substr(slash + 1));
    for (const auto& full : expanded(first)) {
      checkpoint.tensors.push_back({full, saved, shape});
      checkpoint.again.push_back({full, later, shape});
    }
  }
  return checkpoints;
}

const std::vector<SavedCheckpoint>& checkpoints() {
  static const auto all = read_checkpoints();
  return all;
}
const SavedCheckpoint& checkpoint(const std::string& name) {
  for (const auto& one : checkpoints()) {
    if (one.name == name) return one;
  }
  throw std::out_of_range(name);
}

Model model_of(const SavedCheckpoint& checkpoint, const EngineFormat& format = {}) {
  return build_model(parse_model_config(checkpoint.config, "config.json"), format);
}

std::map<std::string, std::string> described(const std::vector<TensorInfo>& tensors) {
  std::map<std::string, std::string> result;
  for (const auto& info : tensors) EXPECT_TRUE(result.emplace(info.name, info.describe()).second) << info.name;
  return result;
}

/// Where engines have a tensor, by its name alone.
std::string engine_tensor_of(const std::string& name, const LatentSizes& latent) {
  static const std::vector<std::pair<std::string, std::string>> fused{
      {"q_proj", "qkv_proj"},        {"k_proj", "qkv_proj"},      {"v_proj", "qkv_proj"},
      {"gate_proj", "gate_up_proj"}, {"up_proj", "gate_up_proj"}, {"q_a_proj", "fused_qkv_a_proj_with_mqa"}};
  const auto experts = name.find(".experts.");
  if (experts != name.npos) {
    const bool down = name.find("down_proj") != name.npos || name.find(".w2.") != name.npos;
    return fmt::format("{}.experts.{}_weight{}", name.substr(0, experts), down ? "w2" : "w13",
                       name.ends_with("_bias") ? "_bias" : "");
  }
  const auto end = name.rfind('.'), begin = name.rfind('.', end - 1) + 1;
  const auto module = name.substr(begin, end - begin);
  const auto in = [&](const std::string& engine) { return name.substr(0, begin) + engine + name.substr(end); };
  if (module == "q_proj" && latent.rope_dim > 0) return name;
  if (module == "kv_a_proj_with_mqa" && latent.query_rank > 0) return in("fused_qkv_a_proj_with_mqa");
  for (const auto& [part, engine] : fused) {
    if (module == part) return in(engine);
  }
  return name;
}

TEST(Families, HaveTheTensorsThatTransformersSaves) {
  for (const auto& saved : checkpoints()) {
    const auto model = model_of(saved);
    std::vector<TensorInfo> expected, built;
    for (auto info : saved.tensors) {
      if (model.config.inside) {
        if (!info.name.starts_with("language_model.")) continue;
        info.name = info.name.substr(15);
      }
      if (info.name.ends_with("e_score_correction_bias")) info.dtype = DType::F32;
      expected.push_back(info);
    }
    for (const auto p : model.tensors()) built.push_back(model.parameters[p].info);
    EXPECT_EQ(described(built), described(expected)) << saved.name;
    EXPECT_EQ(model.tensor_count(), expected.size()) << saved.name;
  }
}

TEST(Families, OfAllThereIsACheckpoint) {
  std::set<Family> without;
  for (const auto& spec : families()) without.insert(spec.family);
  for (const auto& saved : checkpoints()) without.erase(parse_model_config(saved.config, "config.json").family);
  // They have Llama's names: parameter_rules_test.cpp.
  EXPECT_EQ(without, (std::set{Family::qwen3, Family::ministral, Family::ministral3, Family::smollm3, Family::granite,
                               Family::helium, Family::cwm}));
}

TEST(Families, ParametersAreTheirTensorsOnceAndWhereEnginesHaveThem) {
  for (const auto& saved : checkpoints()) {
    const auto model = model_of(saved);
    std::uint64_t bytes = 0;
    for (const auto p : model.tensors()) {
      const auto& info = model.parameters[p].info;
      std::uint64_t rows = 0;
      for (auto section = p; section < model.tensor_end(p); ++section) {
        const auto& rule = model.parameters[section];
        EXPECT_EQ(rule.info, info) << saved.name;
        EXPECT_EQ(rule.row, rows) << saved.name << " " << info.name;
        EXPECT_EQ(rule.engine_tensor, engine_tensor_of(info.name, model.config.latent)) << saved.name;
        rows += rule.rows;
      }
      EXPECT_EQ(rows, matrix_of(info).rows) << saved.name << " " << info.name;
      EXPECT_EQ(model.find(info.name), static_cast<std::ptrdiff_t>(p)) << saved.name;
      bytes += *info.size_bytes();
    }
    EXPECT_EQ(model.size_bytes(), bytes) << saved.name;
    EXPECT_EQ(tensors_of(model).parameters.size(), model.tensor_count()) << saved.name;
    EXPECT_EQ(tensors_of(model).size_bytes(), bytes) << saved.name;
  }
}

TEST(Families, ConfigsReadBackAndPlansAreProven) {
  for (const auto& saved : checkpoints()) {
    auto config = parse_model_config(saved.config, "config.json");
    config.inside = false;
    EXPECT_EQ(parse_model_config(to_config_json(config), "config.json"), config) << saved.name;
    for (const std::uint64_t ep : {1, 2, 4, 8}) {
      if (ep > 1 && config.experts.count == 0) continue;
      const auto model = build_model(config, {.ep = ep});
      for (const std::uint64_t tp : {1, 2, 4, 8}) {
        if (tp % ep != 0) continue;
        EXPECT_THAT(possible_tp(model), testing::Contains(tp)) << saved.name;
        EXPECT_EQ(prove_coverage(make_plan(model, tp, 1)), "") << saved.name << " tp " << tp << " ep " << ep;
      }
    }
  }
}

TEST(Families, EngineTensorsOfExpertsHaveThreeDimensions) {
  const auto shapes = [](const std::string& name, std::uint64_t tp, std::uint64_t ep) {
    const auto plan = make_plan(model_of(checkpoint(name), {.ep = ep}), tp, 1);
    std::map<std::string, std::string> result;
    for (const auto& tensor : plan.engine_tensors) {
      const auto experts = tensor.name.find("layers.1.");
      if (experts != tensor.name.npos && tensor.name.find(".experts.") != tensor.name.npos)
        result[tensor.name.substr(tensor.name.rfind('.') + 1)] =
            fmt::format("{}", fmt::join(shape_of(plan, tensor), "x"));
    }
    return result;
  };
  using Shapes = std::map<std::string, std::string>;
  // 8 experts of 32, hidden 64.
  EXPECT_EQ(shapes("mixtral", 1, 1), (Shapes{{"w13_weight", "8x64x64"}, {"w2_weight", "8x64x32"}}));
  EXPECT_EQ(shapes("mixtral", 4, 1), (Shapes{{"w13_weight", "8x16x64"}, {"w2_weight", "8x64x8"}}));
  EXPECT_EQ(shapes("mixtral", 4, 2), (Shapes{{"w13_weight", "4x32x64"}, {"w2_weight", "4x64x16"}}));
  EXPECT_EQ(shapes("mixtral", 4, 4), (Shapes{{"w13_weight", "2x64x64"}, {"w2_weight", "2x64x32"}}));
  EXPECT_EQ(shapes("deepseek_v3", 8, 8), (Shapes{{"w13_weight", "1x64x64"}, {"w2_weight", "1x64x32"}}));
  EXPECT_EQ(shapes("gpt_oss", 1, 1), (Shapes{{"w13_weight", "8x64x64"},
                                             {"w13_weight_bias", "8x64"},
                                             {"w2_weight", "8x32x64"},
                                             {"w2_weight_bias", "8x64"}}));
  EXPECT_EQ(shapes("gpt_oss", 8, 2), (Shapes{{"w13_weight", "4x64x16"},
                                             {"w13_weight_bias", "4x16"},
                                             {"w2_weight", "4x8x64"},
                                             {"w2_weight_bias", "4x64"}}));
}

TEST(Families, ExpertsAreOwnedByGroups) {
  const auto model = model_of(checkpoint("qwen3_moe"), {.ep = 2});  // 8 experts of 32, hidden 64
  const auto& rule =
      model.parameters[static_cast<std::size_t>(model.find("model.layers.0.mlp.experts.5.up_proj.weight"))];
  EXPECT_EQ(rule.expert, 5u);
  EXPECT_EQ(rule.experts, 8u);
  // Two groups of two ranks: experts 4 to 7 are the second's, half of each matrix on each of its ranks.
  for (const std::uint64_t t : {0, 1}) EXPECT_TRUE(shard_of(rule, 4, t).empty()) << t;
  for (const std::uint64_t t : {2, 3}) EXPECT_EQ(shard_of(rule, 4, t), (Slice{(t - 2) * 16, 0, 16, 64})) << t;
  EXPECT_EQ(holders_of(rule, 4), 1u);
  for (const std::uint64_t t : {0, 1, 2, 3}) {
    EXPECT_FALSE(is_copy(rule, 4, t));
    EXPECT_EQ(shard_extent(rule, 4, t), (MatrixShape{t < 2 ? 0u : 16u, 64}));
  }
  const auto stacked = model_of(checkpoint("gpt_oss"), {.ep = 2});
  const auto first = static_cast<std::size_t>(stacked.find("model.layers.0.mlp.experts.down_proj_bias"));
  ASSERT_EQ(stacked.tensor_end(first), first + 8);
  const auto& bias = stacked.parameters[first + 6];  // whole on both ranks of the second group
  EXPECT_EQ(section_of(bias), (Slice{6, 0, 1, 64}));
  EXPECT_TRUE(shard_of(bias, 4, 1).empty());
  EXPECT_EQ(shard_of(bias, 4, 2), section_of(bias));
  EXPECT_EQ(shard_of(bias, 4, 3), section_of(bias));
  EXPECT_EQ(holders_of(bias, 4), 2u);
  EXPECT_FALSE(is_copy(bias, 4, 2));
  EXPECT_TRUE(is_copy(bias, 4, 3));
  // Gate and up lie in turn along the columns: rank 1 of a group of 2 has the second half of the pairs.
  const auto& gate_up =
      stacked.parameters[static_cast<std::size_t>(stacked.find("model.layers.0.mlp.experts.gate_up_proj")) + 3];
  EXPECT_EQ(shard_of(gate_up, 4, 1), (Slice{3 * 64, 32, 64, 32}));
}

TEST(Families, GroupsThatCannotBeNameWhatCan) {
  const auto refusal = [](const std::string& name, std::uint64_t ep, std::uint64_t tp) {
    const auto error = harness::error_of([&] { make_plan(model_of(checkpoint(name), {.ep = ep}), tp, 1); });
    EXPECT_EQ(error.code(), ExitCode::config) << error.what();
    return fmt::format("{}\n{}", error.what(), error.hint());
  };
  EXPECT_EQ(refusal("mixtral", 3, 3),
            "8 experts cannot be divided evenly for ep 3\nthe experts of this model can be owned by 2, 4, 8 groups");
  EXPECT_EQ(refusal("mixtral", 16, 16),
            "8 experts cannot be divided evenly for ep 16\nthe experts of this model can be owned by 2, 4, 8 groups");
  EXPECT_EQ(refusal("mixtral", 4, 2), "ep 4 does not divide tp 2\nthis model can be cut for tp 4, 8");
  EXPECT_EQ(refusal("olmo2", 2, 2), "ep 2: olmo2 models have no experts\nleave out --ep");
  EXPECT_THAT(refusal("mixtral", 0, 1), HasSubstr("ep must be 1 or more"));
  // 96 of intermediate size over 8 ranks, but experts of 20 over groups of 8.
  auto config = parse_model_config(checkpoint("qwen3_moe").config, "config.json");
  config.experts.intermediate = 20;
  const auto cut = [&](std::uint64_t tp, std::uint64_t ep) {
    const auto error = harness::error_of([&] { make_plan(build_model(config, {.ep = ep}), tp, 1); });
    return std::string(error.what());
  };
  EXPECT_EQ(cut(8, 1), "model.layers.0.mlp.experts.0.gate_proj.weight: 20 rows cannot be divided evenly for tp 8");
  config.experts.intermediate = 6;
  EXPECT_EQ(cut(8, 2),
            "model.layers.0.mlp.experts.0.gate_proj.weight: 6 rows cannot be divided evenly for the 4 ranks of a group "
            "(tp 8, ep 2)");
  EXPECT_EQ(prove_coverage(make_plan(build_model(config, {.ep = 4}), 8, 1)), "");
}

TEST(Families, EveryCheckpointMatches) {
  for (const auto& saved : checkpoints()) {
    const auto model = model_of(saved);
    for (const auto* const tensors : {&saved.tensors, &saved.again}) {
      const auto match = match_checkpoint(model, *tensors, "the checkpoint");
      ASSERT_EQ(match.tensor_index.size(), model.parameters.size()) << saved.name;
      std::set<std::ptrdiff_t> taken;
      for (std::size_t p = 0; p < model.parameters.size(); ++p) {
        const auto& rule = model.parameters[p];
        const auto& tensor = (*tensors)[static_cast<std::size_t>(match.tensor_index[p])];
        EXPECT_EQ(tensor.name, (model.config.inside ? "language_model." : "") + rule.info.name) << saved.name;
        EXPECT_EQ(taken.insert(match.tensor_index[p]).second, rule.row == 0) << saved.name;
      }
      EXPECT_EQ(match.alias, -1) << saved.name;
      if (!model.config.inside) {
        EXPECT_THAT(match.notes, IsEmpty()) << saved.name;
        EXPECT_EQ(taken.size(), tensors->size()) << saved.name;
      }
    }
  }
}

TEST(Families, WhatIsNotOfTheLanguageModelIsListed) {
  for (const std::string name : {"gemma3_multimodal", "mistral3_multimodal", "llava", "llava_qwen2"}) {
    const auto& saved = checkpoint(name);
    auto model = model_of(saved);
    const auto match = match_checkpoint(model, saved.tensors, "the checkpoint");
    ASSERT_EQ(match.notes.size(), 2u) << name;
    EXPECT_THAT(match.notes[0], HasSubstr("a prefix that is known and stripped")) << name;
    EXPECT_THAT(match.notes[1], AllOf(HasSubstr("left out, not of the language model: "),
                                      HasSubstr("multi_modal_projector."), Not(HasSubstr("language_model."))))
        << name;
    // Of a model of its own these are unknown.
    model.config.inside = false;
    const auto error = harness::error_of([&] { match_checkpoint(model, saved.tensors, "the checkpoint"); });
    EXPECT_EQ(error.code(), ExitCode::bad_data) << name;
    EXPECT_THAT(error.what(), AllOf(HasSubstr("multi_modal_projector."), HasSubstr("is unknown"))) << name;
    // The names of transformers' modules since 4.52.
    model.config.inside = true;
    auto tensors = saved.tensors;
    for (auto& info : tensors) {
      const std::string lead = "language_model.model.";
      if (info.name.starts_with(lead)) {
        info.name = "model.language_model." + info.name.substr(lead.size());
      } else if (info.name == "language_model.lm_head.weight") {
        info.name = "lm_head.weight";
      } else {
        info.name = "model." + info.name;
      }
    }
    EXPECT_EQ(match_checkpoint(model, tensors, "the checkpoint").tensor_index, match.tensor_index) << name;
    // One of the language model's that it does not have is no matter of others.
    tensors.push_back({"model.language_model.layers.0.mlp.extra.weight", DType::BF16, {1}});
    EXPECT_THROW(match_checkpoint(model, tensors, "the checkpoint"), Error) << name;
  }
}

class MatchMixture : public testing::Test {
 protected:
  void use(const std::string& name) {
    model_ = model_of(checkpoint(name));
    tensors_ = checkpoint(name).tensors;
  }
  void add(const std::string& name) { tensors_.push_back({name, DType::BF16, {64}}); }
  void set(std::string_view end, DType dtype) {
    for (auto& info : tensors_) {
      if (info.name.ends_with(end)) info.dtype = dtype;
    }
  }
  CheckpointMatch match() const { return match_checkpoint(model_, tensors_, "the checkpoint"); }
  std::string refusal() const {
    const auto error = harness::error_of([&] { match(); });
    EXPECT_EQ(error.code(), ExitCode::bad_data) << error.what();
    return error.what();
  }
  Model model_;
  std::vector<TensorInfo> tensors_;
};

TEST_F(MatchMixture, LayersThatPredictFurtherTokensAreLeftOutAndListed) {
  for (const std::string name : {"deepseek_v3", "glm4_moe"}) {
    use(name);
    ASSERT_EQ(model_.config.skipped_layers, 1u) << name;
    add("model.layers.3.eh_proj.weight");
    add("model.layers.3.shared_head.head.weight");
    EXPECT_THAT(match().notes, ElementsAre("left out, of layers that predict further tokens: "
                                           "model.layers.3.eh_proj.weight, model.layers.3.shared_head.head.weight"));
    add("model.layers.4.eh_proj.weight");
    EXPECT_THAT(refusal(), HasSubstr("model.layers.4.eh_proj.weight is unknown")) << "the config says one layer";
    tensors_.back().name = "model.layers.2.eh_proj.weight";
    EXPECT_THAT(refusal(), HasSubstr("model.layers.2.eh_proj.weight is unknown")) << "the last that is the model's";
    tensors_.back().name = "model.layers.3x.eh_proj.weight";
    EXPECT_THAT(refusal(), HasSubstr("3x.eh_proj.weight is unknown"));
  }
  use("deepseek_v2_lite");
  add("model.layers.3.eh_proj.weight");
  EXPECT_THAT(refusal(), HasSubstr("model.layers.3.eh_proj.weight is unknown")) << "the config says none";
}

TEST_F(MatchMixture, FusedTensorsAreMatchedOnce) {
  for (const std::string name : {"phi3", "glm4", "gpt_oss"}) {
    use(name);
    EXPECT_LT(model_.tensor_count(), model_.parameters.size()) << name;
    EXPECT_EQ(model_.tensor_count(), tensors_.size()) << name;
    const std::string fused = name == "gpt_oss" ? "experts.gate_up_proj" : "mlp.gate_up_proj.weight";
    const auto found = std::ranges::find_if(tensors_, [&](const auto& info) { return info.name.ends_with(fused); });
    const auto whole = *found;
    found->shape[0] += 1;
    EXPECT_THAT(refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr(whole.name), HasSubstr(whole.describe())));
    const auto missing = found->name;
    tensors_.erase(found);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr(missing + " is missing")));
  }
}

TEST_F(MatchMixture, RoutersInF32MayStayWhatTheyAre) {
  std::size_t wide = 0;
  for (const auto& saved : checkpoints()) {
    EXPECT_FALSE(has_wide_routers(saved.tensors)) << saved.name;
    if (!has_wide_routers(saved.again)) continue;
    ++wide;
    const auto config = parse_model_config(saved.config, "config.json", {.wide_routers = true});
    EXPECT_EQ(match_checkpoint(build_model(config), saved.again, "the checkpoint").rounding, "") << saved.name;
  }
  EXPECT_EQ(wide, 11u) << "DeepSeek's, GLM-4.5's and dots1";
  EXPECT_FALSE(has_wide_routers(std::vector<TensorInfo>{{"model.layers.0.mlp.gate.weight", DType::F32, {8, 64}}}));
}

TEST_F(MatchMixture, RoutersInF32AreRoundedAndCorrectionBiasesWidened) {
  use("deepseek_v3");  // of 3 layers the first is dense
  const auto all = tensors_.size();
  EXPECT_EQ(match().rounding, fmt::format("2 of {} parameters are BF16: widened to F32", all));
  set("e_score_correction_bias", DType::F32);
  EXPECT_EQ(match().rounding, "");
  set("mlp.gate.weight", DType::F32);
  EXPECT_EQ(match().rounding, fmt::format("2 of {} parameters are F32: rounded to the nearest BF16", all));
  set("e_score_correction_bias", DType::BF16);
  EXPECT_THAT(match().rounding,
              AllOf(HasSubstr(fmt::format("2 of {} parameters are BF16: widened to F32", all)),
                    HasSubstr(fmt::format("2 of {} parameters are F32: rounded to the nearest BF16", all))));
  set("e_score_correction_bias", DType::F64);
  EXPECT_THAT(refusal(), HasSubstr("e_score_correction_bias is F64 [8], expected F32 [8]"));
}

}  // namespace
}  // namespace weightcast
