// Trainer ranks whose loops have parts of parameters: what they give gets to its place, and what does not fit is named.
#include "weightcast/trainer/training_pieces.hpp"

#include <gmock/gmock.h>

#include "harness/error_of.hpp"
#include "harness/piece_loop.hpp"
#include "harness/random_layout.hpp"
#include "harness/training_plan.hpp"
#include "weightcast/trainer/trainer.hpp"

namespace weightcast {
namespace {

using harness::number;
using harness::PieceLoop;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

RC_GTEST_PROP(TrainingPieces, OfAnyLayoutGetToTheirPlace, ()) {
  const auto model = harness::random_model({.layers = 2, .hidden = 24, .group = 3, .head_dim = 5});
  RC_TAG(std::string(name(model.config.family)), model.format.ep);
  const auto possible = possible_tp(model);
  const auto plan = make_plan(model, possible[number(0, possible.size() - 1)], 1, harness::random_layout(model));
  const auto wire = model.config.dtype, given = number(0, 1) == 0 ? wire : DType::F32;
  std::vector<std::unique_ptr<Trainer>> trainers;
  for (std::size_t rank = 0; rank < plan.sources.ranks.size(); ++rank) {
    trainers.push_back(std::make_unique<Trainer>(plan, Placement{}, rank));
    trainers.back()->reserve();
  }
  const bool one_by_one = number(0, 2) == 0;
  for (const std::uint64_t seed : {1, 2}) {
    const auto masters = harness::whole_masters(model, given, 1000 * seed);
    const auto sent = harness::as_sent(model, masters, given);
    std::vector<const SourceClaim*> claims;
    bool known = true;
    for (std::size_t rank = 0; rank < trainers.size(); ++rank) {
      const PieceLoop loop(plan, rank, masters, given, number(0, 3), 0, number(0, 2));
      if (one_by_one && seed == 2) {
        for (const auto& tensor : loop.tensors) RC_ASSERT(trainers[rank]->put(0, tensor).has_value());
      } else {
        trainers[rank]->fill(0, loop.tensors);
      }
      RC_ASSERT(harness::difference(plan, rank, trainers[rank]->source(0).bytes(), sent) == "");
      claims.push_back(&trainers[rank]->claimed(0));
      known = known && claims.back()->knows_all();
    }
    RC_ASSERT(known || (one_by_one && seed == 2));
    if (known) RC_ASSERT(harness::difference(plan, claims, sent) == "");
  }
}

/// Three ranks under fsdp: of 8011 rows 2671, 2671 and 2669; of 72 rows 24 each; of 36 and 40 some.
struct ThreeRanks {
  explicit ThreeRanks(bool tied = false)
      : plan(make_plan(harness::training_plan(DType::BF16, tied).model, 1, 1,
                       fsdp_layout(harness::training_plan(DType::BF16, tied).model, 3))),
        trainer(plan, {}, 1),
        loop(plan, 1, harness::whole_masters(plan.model, DType::F32, 1), DType::F32, 0) {
    trainer.reserve();
  }
  TrainingTensor& operator[](std::string_view name) {
    return *std::ranges::find_if(loop.tensors, [&](const auto& tensor) { return tensor.info.name == name; });
  }
  std::string refusal() {
    const auto error = harness::error_of([&] { trainer.fill(0, loop.tensors); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_FALSE(error.hint().empty());
    return error.what();
  }
  const TransferPlan plan;
  Trainer trainer;
  PieceLoop loop;
};

TEST(TrainingPieces, EveryOneThatDoesNotFitIsListedByName) {
  ThreeRanks rank;
  rank["model.norm.weight"].offsets = {0};
  rank["lm_head.weight"].full_shape = {8012, 72};
  rank["model.layers.0.mlp.up_proj.weight"].info.name = "model.layers.0.mlp.pu_proj.weight";
  rank["model.layers.1.mlp.up_proj.weight"].info.dtype = DType::F64;
  auto& whole = rank["model.layers.0.input_layernorm.weight"];
  whole.offsets.clear();
  whole.full_shape.clear();
  rank.loop.tensors.push_back(rank["model.layers.1.mlp.down_proj.weight"]);
  EXPECT_THAT(
      rank.refusal(),
      AllOf(HasSubstr("7 differences"),
            HasSubstr("model.norm.weight is F32 [24] at [0] of [72], expected model.norm.weight[24:48], BF16 [24]"),
            HasSubstr("lm_head.weight is F32 [2671, 72] at [2671, 0] of [8012, 72], expected "
                      "lm_head.weight[2671:5342, :], BF16 [2671, 72]"),
            HasSubstr("model.layers.0.mlp.up_proj.weight[14:28, :] is missing"),
            HasSubstr("model.layers.0.mlp.pu_proj.weight is unknown"),
            HasSubstr("model.layers.1.mlp.up_proj.weight is F64 [14, 72]"),
            HasSubstr("model.layers.0.input_layernorm.weight is F32 [24], expected"),
            HasSubstr("model.layers.1.mlp.down_proj.weight[24:48, :] appears twice")));
}

TEST(TrainingPieces, WhatARankHasNothingOfIsEmptyOrRefused) {
  const auto model = harness::training_plan(DType::BF16).model;
  const auto plan = make_plan(model, 1, 1, whole_layout(model, 2));
  Trainer trainer(plan, {}, 1);
  trainer.reserve();
  trainer.fill(0, {});
  EXPECT_TRUE(trainer.claimed(0).knows_all());
  std::vector<TrainingTensor> tensors{{{"model.norm.weight", DType::F32, {0}}, nullptr, {}, {}, {72}, {72}}};
  trainer.fill(0, tensors);
  EXPECT_FALSE(trainer.put(0, tensors.front()).has_value());
  const std::vector<float> norm(72);
  tensors.push_back({{"model.norm.weight", DType::F32, {72}}, norm.data()});
  const auto error = harness::error_of([&] { trainer.fill(0, tensors); });
  EXPECT_THAT(error.what(), HasSubstr("model.norm.weight is F32 [72], but trainer rank 1 has nothing of it"));
  // One that is stated as empty does not stand for a piece.
  ThreeRanks rank;
  auto& tensor = rank["model.norm.weight"];
  tensor.info.shape = {0};
  EXPECT_THAT(rank.refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr("model.norm.weight[24:48] is missing")));
}

TEST(TrainingPieces, OnlyRectanglesWithinTheParameterAreOnes) {
  const TensorInfo info{"w", DType::BF16, {6, 4, 2}};
  const auto slice = [&](std::vector<std::uint64_t> shape, std::vector<std::uint64_t> offsets,
                         std::vector<std::uint64_t> full = {6, 4, 2}) {
    return slice_of(info, {{"w", DType::BF16, std::move(shape)}, nullptr, {}, {}, std::move(offsets), std::move(full)});
  };
  // The matrix has 6 * 4 rows of 2: whole ones of the 6, or a part of one, and any columns.
  EXPECT_EQ(slice({6, 4, 2}, {0, 0, 0}), (Slice{0, 0, 24, 2}));
  EXPECT_EQ(slice({6, 4, 2}, {}, {}), (Slice{0, 0, 24, 2}));
  EXPECT_EQ(slice({2, 4, 2}, {3, 0, 0}), (Slice{12, 0, 8, 2}));
  EXPECT_EQ(slice({1, 3, 2}, {4, 1, 0}), (Slice{17, 0, 3, 2}));
  EXPECT_EQ(slice({6, 4, 1}, {0, 0, 1}), (Slice{0, 1, 24, 1}));
  EXPECT_EQ(slice({1, 2, 1}, {5, 2, 1}), (Slice{22, 1, 2, 1}));
  EXPECT_EQ(slice({0, 4, 2}, {6, 0, 0}), Slice{});
  EXPECT_EQ(slice({2, 3, 2}, {4, 1, 0}), std::nullopt) << "no rectangle of the matrix";
  EXPECT_EQ(slice({6, 1, 2}, {0, 0, 0}), std::nullopt) << "no rectangle of the matrix";
  EXPECT_EQ(slice({6, 4, 1}, {}, {}), std::nullopt);
  EXPECT_EQ(slice({3, 4, 2}, {4, 0, 0}), std::nullopt);
  EXPECT_EQ(slice({3, 4, 2}, {UINT64_MAX, 0, 0}), std::nullopt);
  EXPECT_EQ(slice({3, 4, 2}, {0, 0}), std::nullopt);
  EXPECT_EQ(slice({3, 4, 2}, {0, 0, 0}, {6, 4, 3}), std::nullopt);
  EXPECT_EQ(slice({3, 8}, {0, 0}), std::nullopt);
}

TEST(TrainingPieces, ATiedHeadsPieceMustHoldWhatTheEmbeddingsDoes) {
  ThreeRanks rank(true);
  auto head = rank["model.embed_tokens.weight"];
  head.info.name = "lm_head.weight";
  const auto* const from = static_cast<const std::byte*>(head.data);
  std::vector<std::byte> other(from, from + *head.info.size_bytes());
  const auto sent =
      harness::as_sent(rank.plan.model, harness::whole_masters(rank.plan.model, DType::F32, 1), DType::F32);
  const auto expect_filled = [&] {
    rank.trainer.fill(0, rank.loop.tensors);
    EXPECT_EQ(harness::difference(rank.plan, 1, rank.trainer.source(0).bytes(), sent), "");
  };
  rank.loop.tensors.insert(rank.loop.tensors.begin(), head);  // the same memory, before the embedding
  expect_filled();
  rank.loop.tensors.front().data = other.data();
  expect_filled();
  other.back() ^= std::byte{0x40};
  EXPECT_THAT(rank.refusal(), HasSubstr("lm_head.weight differs from model.embed_tokens.weight"));
  rank.loop.tensors.push_back(rank.loop.tensors.front());
  EXPECT_THAT(rank.refusal(), HasSubstr("lm_head.weight[2671:5342, :] appears twice"));
  rank.loop.tensors.pop_back();
  other.back() ^= std::byte{0x40};
  std::erase_if(rank.loop.tensors, [](const auto& t) { return t.info.name == "model.embed_tokens.weight"; });
  expect_filled();
  rank.loop.tensors.front().offsets = {0, 0};
  EXPECT_THAT(rank.refusal(),
              AllOf(HasSubstr("lm_head.weight is F32 [2671, 72] at [0, 0]"),
                    HasSubstr("expected model.embed_tokens.weight[2671:5342, :]"), Not(HasSubstr("missing"))));
}

TEST(TrainingPieces, OneOfSeveralThatIsPutAloneIsDigestedWhenItIsSent) {
  const auto model = harness::training_plan(DType::BF16).model;
  std::vector<HeldRectangle> rectangles;
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto slice = section_of(model.parameters[p]);
    const auto half = slice.rows / 2;
    rectangles.push_back({0, p, {0, 0, half, slice.columns}});
    rectangles.push_back({0, p, {half, 0, slice.rows - half, slice.columns}});
  }
  const auto plan = make_plan(model, 1, 1, custom_layout(model, 1, rectangles));
  Trainer trainer(plan);
  trainer.reserve();
  const auto masters = harness::whole_masters(model, DType::F32, 1);
  const PieceLoop loop(plan, 0, masters, DType::F32, 2);
  trainer.fill(0, loop.tensors);
  const auto sent = harness::as_sent(model, masters, DType::F32);
  const SourceClaim* const claims[] = {&trainer.claimed(0)};
  EXPECT_EQ(harness::difference(plan, claims, sent), "");
  trainer.put(0, loop.tensors.front());
  EXPECT_FALSE(trainer.claimed(0).knows({model.parameters.size() - 1, 1}));
  EXPECT_TRUE(trainer.claimed(0).knows({0, model.parameters.size() - 1}));
}

}  // namespace
}  // namespace weightcast
