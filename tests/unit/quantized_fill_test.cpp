// Training loops of several ranks for engines in fp8: matrices become the bits of quantize() with their scales, or it
// is said what cuts them.
#include "weightcast/trainer/quantized_fill.hpp"

#include <gmock/gmock.h>

#include "harness/error_of.hpp"
#include "harness/quantized_loop.hpp"
#include "harness/random_layout.hpp"
#include "harness/training_plan.hpp"
#include "weightcast/delta/source_changes.hpp"
#include "weightcast/trainer/trainer.hpp"

namespace weightcast {
namespace {

using harness::number;
using harness::PieceLoop;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// Blocks end with most matrices, and now and then do not. Nothing when such a model is refused.
std::optional<Model> random_quantized_model() {
  auto config = harness::random_config({.layers = 2, .hidden = 24, .group = 2, .head_dim = 4});
  config.dtype = DType::BF16;
  config.hidden = *rc::gen::element(64, 128, 256, 200);
  config.intermediate = *rc::gen::element(96, 128, 256, 512);
  if (!spec_of(config.family).latent_attention) config.head_dim = *rc::gen::element(32, 128, 128, 256);
  for (auto* size : {&config.experts.intermediate, &config.experts.shared}) {
    if (*size > 0) *size = *rc::gen::element(64, 128, 256);
  }
  for (const auto quantization :
       {*rc::gen::element(Quantization::fp8_block, Quantization::fp8_channel), Quantization::fp8_channel}) {
    try {
      return build_model(config, {.ep = 1, .quantization = quantization});
    } catch (const Error& error) {
      RC_ASSERT(error.code() == ExitCode::config);
    }
  }
  return std::nullopt;
}

SourceLayout random_made_layout(const Model& model) {
  const auto kind = *rc::gen::element(LayoutKind::whole, LayoutKind::fsdp, LayoutKind::fsdp, LayoutKind::tp);
  const auto possible = possible_tp(model);
  const auto trainers = kind == LayoutKind::tp ? possible[number(0, possible.size() - 1)] : number(1, 4);
  RC_TAG(std::string(name(kind)), trainers);
  return make_layout(kind, model, trainers);
}

/// Whether all pieces of matrices have what they share a scale with, said of elements.
bool leaves_scales_whole(const Model& model, const SourceLayout& layout) {
  for (const auto& rank : layout.ranks) {
    for (const auto& [p, slice, offset, pitch] : rank.pieces) {
      const auto& info = model.parameters[p].info;
      if (info.dtype != DType::F8_E4M3) continue;
      const auto [rows, columns] = matrix_of(info);
      if (model.format.quantization == Quantization::fp8_channel) {
        if (slice.columns != columns) return false;
        continue;
      }
      const auto row_end = slice.row + slice.rows, column_end = slice.column + slice.columns;
      if (slice.row % 128 + slice.column % 128 != 0 || (row_end % 128 != 0 && row_end != rows) ||
          (column_end % 128 != 0 && column_end != columns))
        return false;
    }
  }
  return true;
}

RC_GTEST_PROP(QuantizedFill, OfAnyLayoutIsWhatTheWholeMatrixWouldBe, ()) {
  const auto model = random_quantized_model();
  RC_PRE(model.has_value());
  const auto layout = random_made_layout(*model);
  RC_ASSERT(prove_layout(*model, layout) == "");
  const auto possible = possible_tp(*model);
  const auto plan = make_plan(*model, possible[number(0, possible.size() - 1)], 1, layout);
  const auto given = *rc::gen::element(DType::F32, DType::BF16, DType::F16);
  const bool whole = leaves_scales_whole(*model, layout);
  RC_TAG(std::string(name(model->format.quantization)), whole);
  const bool one_by_one = number(0, 2) == 0;
  std::vector<std::unique_ptr<Trainer>> trainers;
  for (std::size_t rank = 0; rank < layout.ranks.size(); ++rank) {
    trainers.push_back(std::make_unique<Trainer>(plan, Placement{}, rank));
    trainers.back()->reserve();
  }
  for (const std::uint64_t seed : {1, 2}) {
    const auto masters = harness::finite_masters(*model, given, 1000 * seed);
    const auto sent = harness::as_quantized(*model, masters, given);
    std::vector<const SourceClaim*> claims;
    std::size_t refused = 0;
    for (std::size_t rank = 0; rank < trainers.size(); ++rank) {
      PieceLoop loop(plan, rank, masters, given, number(0, 3), 0, number(0, 2));
      harness::remove_scales(*model, loop.tensors);
      try {
        if (one_by_one && seed == 2) {
          for (const auto& tensor : loop.tensors) RC_ASSERT(trainers[rank]->put(0, tensor).has_value());
        } else {
          trainers[rank]->fill(0, loop.tensors);
        }
      } catch (const Error& error) {
        RC_ASSERT(error.code() == ExitCode::bad_data);
        ++refused;
        continue;
      }
      RC_ASSERT(harness::difference(plan, rank, trainers[rank]->source(0).bytes(), sent) == "");
      claims.push_back(&trainers[rank]->claimed(0));
    }
    RC_ASSERT((refused == 0) == whole);
    if (refused == 0 && !(one_by_one && seed == 2)) RC_ASSERT(harness::difference(plan, claims, sent) == "");
  }
}

ModelConfig blocks_config(Family family = Family::llama) {
  auto config = harness::training_config(1, 256, 64, 320, 100);
  config.family = family;
  return config;
}
Model llama_of(Quantization quantization, std::uint64_t intermediate, std::uint64_t hidden = 256) {
  auto config = blocks_config();
  config.hidden = hidden;
  config.intermediate = intermediate;
  return build_model(config, {.ep = 1, .quantization = quantization});
}

/// A trainer rank and what its loop has.
struct Rank {
  Rank(const Model& model, const SourceLayout& layout, std::size_t rank, DType given = DType::F32)
      : plan(make_plan(model, 1, 1, layout)),
        masters(harness::finite_masters(model, given, 1)),
        sent(harness::as_quantized(model, masters, given)),
        trainer(plan, {}, rank),
        loop(plan, rank, masters, given, 0) {
    trainer.reserve();
    harness::remove_scales(plan.model, loop.tensors);
  }
  TrainingTensor& operator[](std::string_view name) {
    return *std::ranges::find_if(loop.tensors, [&](const auto& tensor) { return tensor.info.name == name; });
  }
  std::size_t find(std::string_view name) const { return static_cast<std::size_t>(plan.model.find(name)); }
  std::string refusal() {
    const auto error = harness::error_of([&] { trainer.fill(0, loop.tensors); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    return error.what();
  }
  const TransferPlan plan;
  const std::vector<std::vector<std::byte>> masters, sent;
  Trainer trainer;
  PieceLoop loop;
};

constexpr const char* down = "model.layers.0.mlp.down_proj.weight";
constexpr const char* down_scales = "model.layers.0.mlp.down_proj.weight_scale_inv";

TEST(QuantizedFill, WhoHasRowsHasTheirScales) {
  const auto model = llama_of(Quantization::fp8_block, 384);
  const auto gate = static_cast<std::size_t>(model.find("model.layers.0.mlp.gate_proj.weight"));
  const auto scales = scales_parameter(model, gate).value();
  for (const std::uint64_t trainers : {1, 2, 3, 4}) {
    const auto layout = fsdp_layout(model, trainers);
    EXPECT_EQ(prove_layout(model, layout), "");
    const auto rows_on = [&](std::size_t p, std::size_t rank) {
      const auto pieces = layout.ranks[rank].pieces_of(p);
      return pieces.empty() ? std::uint64_t{0} : pieces.front().slice.rows;
    };
    for (std::size_t rank = 0; trainers == 3 && rank < 3; ++rank) {
      EXPECT_EQ(rows_on(gate, rank), 128u);
      EXPECT_EQ(rows_on(scales, rank), 1u);
    }
    if (trainers == 2) {  // 192 rows each: by itself, as FSDP would
      EXPECT_EQ(rows_on(scales, 0), 2u);
      EXPECT_EQ(rows_on(scales, 1), 1u);
    }
  }
  const auto four = llama_of(Quantization::fp8_block, 512);
  const auto layout = fsdp_layout(four, 2);
  EXPECT_EQ(layout.ranks[1].pieces_of(scales).front().slice, (Slice{2, 0, 2, 2}));
}

TEST(QuantizedFill, WhatCutsBlocksIsNamedWithWhatDoesNot) {
  Rank second(llama_of(Quantization::fp8_block, 384), fsdp_layout(llama_of(Quantization::fp8_block, 384), 2), 1);
  EXPECT_THAT(second.refusal(), AllOf(HasSubstr("model.layers.0.mlp.gate_proj.weight[192:384, :] has parts of blocks"),
                                      HasSubstr("fp8-channel, layout whole or another number of trainer ranks"),
                                      Not(HasSubstr("down_proj")), Not(HasSubstr("missing"))));
  const auto by_row = llama_of(Quantization::fp8_channel, 384);
  Rank columns(by_row, tp_layout(by_row, 2), 0);
  EXPECT_THAT(columns.refusal(), AllOf(HasSubstr("down_proj.weight[:, 0:192] has parts of rows that share a scale"),
                                       HasSubstr("fp8-block"), Not(HasSubstr("gate_proj"))));
  // Aligned, but the scales are elsewhere.
  const auto model = llama_of(Quantization::fp8_block, 384);
  std::vector<HeldRectangle> rectangles;
  for (std::size_t p = 0; p < model.parameters.size(); ++p)
    rectangles.push_back({model.parameters[p].info.name == down_scales ? 1u : 0u, p, section_of(model.parameters[p])});
  Rank apart(model, custom_layout(model, 2, rectangles), 0);
  EXPECT_THAT(apart.refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr(down), HasSubstr("none of it")));
}

TEST(QuantizedFill, ScalesAreGivenWithFp8AndOnlyThen) {
  const auto model = llama_of(Quantization::fp8_block, 384, 200);
  Rank rank(model, whole_layout(model), 0);
  rank.trainer.fill(0, rank.loop.tensors);
  EXPECT_EQ(harness::difference(rank.plan, 0, rank.trainer.source(0).bytes(), rank.sent), "");
  auto& matrix = rank[down];
  const auto wide = matrix;
  const auto elements = rank.find(down), scales = rank.find(down_scales);
  std::vector<std::byte> fp8 = rank.sent[elements], own(rank.sent[scales].size(), std::byte{0x3b});
  matrix.info.dtype = DType::F8_E4M3;
  matrix.data = fp8.data();
  matrix.strides_bytes.clear();
  EXPECT_THAT(rank.refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr("weight_scale_inv is missing")));
  rank.loop.tensors.push_back({model.parameters[scales].info, own.data()});
  rank.trainer.fill(0, rank.loop.tensors);
  auto expected = rank.sent;
  expected[scales] = own;
  EXPECT_EQ(harness::difference(rank.plan, 0, rank.trainer.source(0).bytes(), expected), "");
  rank[down] = wide;
  for (int order = 0; order < 2; ++order) {
    EXPECT_THAT(rank.refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr("weight_scale_inv is given beside"),
                                      HasSubstr("leave it out")));
    std::ranges::reverse(rank.loop.tensors);
  }
  EXPECT_TRUE(std::erase_if(rank.loop.tensors, [](const auto& t) { return t.info.name == down_scales; }) == 1);
  rank.loop.tensors.push_back(rank[down]);
  EXPECT_THAT(rank.refusal(), AllOf(HasSubstr("1 difference\n"), HasSubstr("down_proj.weight appears twice")));
}

TEST(QuantizedFill, SectionsOfOneTensorAndAnyStridesAreOne) {
  auto config = blocks_config(Family::phi3);
  config.intermediate = 384;
  for (const auto quantization : {Quantization::fp8_block, Quantization::fp8_channel}) {
    const auto model = build_model(config, {.ep = 1, .quantization = quantization});
    Rank rank(model, whole_layout(model), 0, DType::BF16);
    auto& parts = rank.loop.tensors;
    const std::string name = "model.layers.0.self_attn.qkv_proj.weight";
    std::erase_if(parts, [&](const auto& tensor) { return tensor.info.name == name; });
    const auto& info = model.parameters[rank.find(name)].info;
    const auto [rows, columns] = matrix_of(info);
    const auto& whole = rank.masters[rank.find(name)];
    std::vector<std::byte> transposed(whole.size());
    for (std::uint64_t i = 0; i < rows * columns; ++i)
      std::memcpy(transposed.data() + 2 * (i % columns * rows + i / columns), whole.data() + 2 * i, 2);
    parts.push_back({.info = {name, DType::BF16, info.shape},
                     .data = transposed.data(),
                     .strides_bytes = {2, static_cast<std::int64_t>(2 * rows)}});
    rank.trainer.fill(0, parts);
    EXPECT_EQ(harness::difference(rank.plan, 0, rank.trainer.source(0).bytes(), rank.sent), "");
    const SourceClaim* const claims[] = {&rank.trainer.claimed(0)};
    EXPECT_EQ(harness::difference(rank.plan, claims, rank.sent), "");
  }
}

TEST(QuantizedFill, MarksWhatChangedAndNothingElse) {
  for (const auto quantization : {Quantization::fp8_block, Quantization::fp8_channel}) {
    const auto model = llama_of(quantization, 384, 200);
    Rank rank(model, whole_layout(model), 0);
    SourceFill fill(rank.plan, 0);
    auto memory = Buffer::host(rank.plan.source_bytes(0), false, "a test");
    SourceClaim claim(rank.plan);
    SourceChanges changes({}, memory.region().size_bytes);
    fill.run(rank.loop.tensors, memory.region(), claim, changes, Deadline::after(60));
    changes.begin(1);
    std::vector<std::byte> before(memory.region().bytes().begin(), memory.region().bytes().end());
    // The greatest of its row and its block.
    auto& matrix = rank[down];
    auto changed = rank.masters[rank.find(down)];
    const float large = 4096;
    std::memcpy(changed.data() + 4 * (150 * 384 + 17), &large, 4);
    matrix.data = changed.data();
    fill.run(rank.loop.tensors, memory.region(), claim, changes, Deadline::after(60));
    const auto held = memory.region().bytes();
    std::size_t marked = 0;
    for (std::size_t unit = 0; unit < held.size() / 2; ++unit) {
      const bool differs = std::memcmp(before.data() + 2 * unit, held.data() + 2 * unit, 2) != 0;
      const bool mark = (changes.marks()[unit / 32] >> unit % 32 & 1) != 0;
      ASSERT_EQ(mark, differs) << unit;
      marked += mark ? 1 : 0;
    }
    EXPECT_GT(marked, 100u);
    EXPECT_TRUE(claim.knows_all());
  }
}

}  // namespace
}  // namespace weightcast
