#include "weightcast/model/match_checkpoint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

Model model_of(bool tied) {
  auto config = load_model_config("tiny");
  config.tied_embeddings = tied;
  return build_model(config);
}

class MatchCheckpoint : public testing::Test {
 protected:
  explicit MatchCheckpoint(bool tied = false) : model_(model_of(tied)) {
    for (const auto& rule : model_.parameters) tensors_.push_back(rule.info);
    std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  }

  TensorInfo& tensor(const std::string& name) {
    return *std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& info) { return info.name == name; });
  }
  /// Renames each tensor that is not among `except`.
  void rename(const std::function<std::string(const std::string&)>& rename, const std::string& except = "") {
    for (auto& info : tensors_) {
      if (info.name != except) info.name = rename(info.name);
    }
  }
  CheckpointMatch match() const { return match_checkpoint(model_, tensors_, "the checkpoint", ignore_); }
  /// Whether each parameter has the tensor that had its name in the beginning.
  bool matches() const {
    auto original = model_.parameters;
    std::sort(original.begin(), original.end(), [](const auto& a, const auto& b) { return a.info.name < b.info.name; });
    const auto found = match();
    for (std::size_t p = 0; p < model_.parameters.size(); ++p) {
      const auto index = static_cast<std::size_t>(found.tensor_index[p]);
      if (index >= original.size() || original[index].info.name != model_.parameters[p].info.name) return false;
    }
    return true;
  }
  std::string refusal(ExitCode code = ExitCode::bad_data) const {
    const auto error = harness::error_of([&] { match(); });
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }

  Model model_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> ignore_;
};

class MatchTiedCheckpoint : public MatchCheckpoint {
 protected:
  MatchTiedCheckpoint() : MatchCheckpoint(true) {}
};

TEST_F(MatchCheckpoint, ThePlainOneNeedsNoNotes) {
  EXPECT_TRUE(matches());
  EXPECT_THAT(match().notes, IsEmpty());
  EXPECT_EQ(match().rounding, "");
}

TEST_F(MatchCheckpoint, KnownPrefixes) {
  const auto plain = tensors_;
  const auto taken = [&](const std::function<std::string(const std::string&)>& change, const std::string& except = "") {
    tensors_ = plain;
    rename(change, except);
    EXPECT_TRUE(matches()) << tensors_.front().name;
    EXPECT_THAT(match().notes, ElementsAre(HasSubstr("a prefix that is known and stripped"))) << tensors_.front().name;
  };
  for (const std::string prefix :
       {"_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.", "pretrained_model.",
        "base_model.model.", "language_model.", "model.", "module.module.model."}) {
    taken([&](const std::string& name) { return prefix + name; });
  }
  const auto inside = [](const std::string& lead) {
    return [lead](const std::string& name) { return lead + name.substr(name.find('.') + 1); };
  };
  taken(inside("model.language_model."), "lm_head.weight");
  taken(inside("language_model."), "lm_head.weight");
  taken(inside("_orig_mod.model.language_model."), "lm_head.weight");
  taken(inside(""), "lm_head.weight");  // the model saved without its head's class
  taken([](const std::string& name) {
    const auto layers = name.find("layers.");
    return layers == std::string::npos ? name : std::string(name).insert(layers + 9, "_checkpoint_wrapped_module.");
  });
}

TEST_F(MatchCheckpoint, AnUnknownPrefixIsOneLine) {
  rename([](const std::string& name) { return "policy." + name; });
  EXPECT_THAT(refusal(), AllOf(HasSubstr("of 30 parameters begin with \"policy.\""), Not(HasSubstr("\n"))));
  rename([](const std::string& name) { return name.substr(7); });
  rename([](const std::string& name) { return "model.text." + name.substr(6); }, "lm_head.weight");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("of 29 parameters begin with \"model.text.\""), Not(HasSubstr("\n"))));
}

TEST_F(MatchCheckpoint, APrefixIsSharedOrThereIsNone) {
  rename([](const std::string& name) { return "model.language_model." + name.substr(6); }, "lm_head.weight");
  tensor("model.language_model.norm.weight").name = "model.norm.weight";  // of another model, perhaps
  EXPECT_THAT(refusal(), AllOf(HasSubstr("model.norm.weight is missing"),
                               HasSubstr("model.norm.weight (without model.language_model.) is unknown")));
  tensor("model.norm.weight").name = "model.language_model.norm.weight";
  tensors_.push_back({"model.norm.weight", DType::BF16, {64}});
  EXPECT_THAT(refusal(), HasSubstr("is unknown"));
  tensors_.back().name = "_orig_mod.model.language_model.norm.weight";
  EXPECT_THAT(refusal(), HasSubstr("model.norm.weight appears twice"));
}

TEST_F(MatchCheckpoint, BookkeepingIsLeftOutAndListed) {
  const auto with = [&](const std::string& name) {
    auto copy = tensors_;
    copy.push_back({name, DType::U8, {0}});
    return match_checkpoint(model_, copy, "the checkpoint");
  };
  for (const std::string name : {"model.layers.0.mlp.down_proj._extra_state", "v_head.summary.weight", "score.weight",
                                 "model.layers.0.self_attn.k_scale", "model.layers.1.self_attn.attn.v_scale",
                                 "_orig_mod.v_head.summary.bias", "model.layers.0.self_attn.k_proj.output_scale"}) {
    EXPECT_THAT(with(name).notes, ElementsAre("left out, no weights of the model: " + name));
  }
  for (const std::string name : {"model.layers.0.mlp.down_proj.weight_scale", "extra_state", "model.v_head.weight",
                                 "model.layers.0.self_attn.q_proj.input_scale", "model.layers.3.mlp.up_proj.weight",
                                 "model.layers.0.self_attn.q_proj.bias"}) {
    EXPECT_THROW(with(name), Error) << name;
  }
}

TEST_F(MatchCheckpoint, IgnoreTakesPatternsOfWhatIsNotNeeded) {
  for (const std::string name : {"model.visual.patch.weight", "model.visual.norm.bias", "mtp.weight"})
    tensors_.push_back({name, DType::BF16, {2}});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("3 differences"), HasSubstr("mtp.weight is unknown")));
  ignore_ = {"model.visual.*"};
  EXPECT_THAT(refusal(), HasSubstr("1 difference"));
  ignore_.emplace_back("mt[p].*");
  EXPECT_TRUE(matches());
  EXPECT_THAT(match().notes,
              ElementsAre("left out by --ignore: model.visual.patch.weight, model.visual.norm.bias, mtp.weight"));
  for (const std::string greedy : {"*", "*.weight", "model.norm.weight", "lm_head.*", "*layers.2*"}) {
    ignore_ = {greedy};
    EXPECT_THAT(refusal(ExitCode::usage), HasSubstr("which the model needs")) << greedy;
  }
  ignore_ = {"*no such*", "model.norm.weigh", "norm.weight"};
  EXPECT_THAT(refusal(), HasSubstr("3 differences"));
}

TEST_F(MatchTiedCheckpoint, IgnoreOfATiedHead) {
  EXPECT_TRUE(matches());
  auto head = tensor("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  tensors_.push_back(head);
  EXPECT_EQ(match().alias, 29);
  ignore_ = {"lm_head.weight"};
  EXPECT_EQ(match().alias, -1);
  EXPECT_TRUE(matches());
  ignore_ = {"model.embed_tokens.weight"};
  EXPECT_THAT(refusal(ExitCode::usage), HasSubstr("needs"));
  std::erase_if(tensors_, [](const auto& info) { return info.name == "model.embed_tokens.weight"; });
  ignore_ = {"lm_head.weight"};
  EXPECT_THAT(refusal(ExitCode::usage), HasSubstr("needs"));
}

TEST_F(MatchCheckpoint, FloatsOfTheThreeTypesAreTakenForEachOther) {
  tensor("model.norm.weight").dtype = DType::F32;
  tensor("model.layers.1.mlp.up_proj.weight").dtype = DType::F16;
  EXPECT_TRUE(matches());
  EXPECT_EQ(match().rounding, "1 of 30 parameters are F16, 1 of 30 parameters are F32: rounded to the nearest BF16");
  tensor("model.norm.weight").shape = {32};
  EXPECT_THAT(refusal(), HasSubstr("model.norm.weight is F32 [32], expected BF16 [64]"));
  tensor("model.norm.weight").shape = {64};
  for (const auto dtype : {DType::F64, DType::I16, DType::U16, DType::F8_E4M3}) {
    tensor("model.norm.weight").dtype = dtype;
    EXPECT_THAT(refusal(), HasSubstr("expected BF16 [64]"));
  }
}

TEST_F(MatchCheckpoint, OtherNamings) {
  tensors_.push_back({"model.layers.0.self_attn.q_proj.lora_A.weight", DType::BF16, {4, 64}});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("an adapter that is not merged"), Not(HasSubstr("\n"))));
  tensors_ = {{"tok_embeddings.weight", DType::BF16, {200, 64}},
              {"layers.0.attention.wq.weight", DType::BF16, {64, 64}}};
  EXPECT_THAT(refusal(), AllOf(HasSubstr("names of another format"), Not(HasSubstr("\n"))));
}

TEST(DTypeOfWeights, IsThatOfMostBytes) {
  EXPECT_EQ(dtype_of_weights({}), std::nullopt);
  EXPECT_EQ(dtype_of_weights(std::vector<TensorInfo>{{"a", DType::I64, {100}}}), std::nullopt);
  EXPECT_EQ(dtype_of_weights(std::vector<TensorInfo>{
                {"a", DType::F32, {100}}, {"b", DType::BF16, {201}}, {"c", DType::U8, {10'000}}}),
            DType::BF16);
  EXPECT_EQ(dtype_of_weights(std::vector<TensorInfo>{{"a", DType::F32, {100}}, {"b", DType::BF16, {199}}}), DType::F32);
}

// Wrappers in any number and order change nothing of what is matched.
RC_GTEST_FIXTURE_PROP(MatchTiedCheckpoint, WrappersInAnyOrder, ()) {
  const auto parts = *rc::gen::container<std::vector<std::string>>(
      rc::gen::element<std::string>("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."));
  std::string prefix;
  for (const auto& part : parts) prefix += part;
  rename([&](const std::string& name) { return prefix + name; });
  RC_ASSERT(matches());
}

}  // namespace
}  // namespace weightcast
