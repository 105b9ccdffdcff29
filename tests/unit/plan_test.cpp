#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TransferPlan plan_of(const std::string& shape, std::uint64_t tp, std::uint64_t dp = 1) {
  return make_plan(build_model(load_model_config(shape)), tp, dp);
}
const EngineTensor& tensor(const TransferPlan& plan, const std::string& name) {
  const auto found = std::find_if(plan.engine_tensors.begin(), plan.engine_tensors.end(),
                                  [&](const EngineTensor& t) { return t.name == name; });
  if (found == plan.engine_tensors.end()) throw std::out_of_range(name);
  return *found;
}
std::size_t parameter(const TransferPlan& plan, const std::string& name) {
  return static_cast<std::size_t>(plan.model.find(name));
}

// DeepSeek-V3: 45,000 parameters, as an engine of 16 ranks holds them that own 16 experts of each layer each.
TEST(LargePlan, AMixtureOfManyExpertsIsProvenAndEachRankHasItsBytes) {
  ModelConfig config{.family = Family::deepseek_v3,
                     .layers = 61,
                     .hidden = 7168,
                     .heads = 128,
                     .kv_heads = 128,
                     .head_dim = 192,
                     .intermediate = 18432,
                     .vocabulary = 129280};
  config.latent = {.query_rank = 1536, .key_value_rank = 512, .nope_dim = 128, .rope_dim = 64, .value_dim = 128};
  config.experts = {.count = 256, .intermediate = 2048, .shared = 2048, .dense_layers = {0, 1, 2}};
  const auto plan = make_plan(build_model(config, {.ep = 16}), 16, 1);
  EXPECT_EQ(plan.model.parameters.size(), 3U + 61 * 9 + 3 * 3 + 58 * (2 + 3 * 256 + 3));
  EXPECT_EQ(prove_coverage(plan), "");

  constexpr std::uint64_t bf16 = 2, hidden = 7168;
  constexpr std::uint64_t ends = 2 * (129280 / 16) * hidden + hidden;
  constexpr std::uint64_t attention = (1536 + 512 + 64) * hidden + 1536 + 512 + 128 * 192 / 16 * 1536 +
                                      128 * 256 / 16 * 512 + hidden * 128 * 128 / 16 + 2 * hidden;
  constexpr std::uint64_t dense = 3 * 18432 / 16 * hidden;
  constexpr std::uint64_t experts = 256 * hidden + 256 / 16 * 3 * 2048 * hidden + 3 * 2048 / 16 * hidden;
  constexpr std::uint64_t biases = 58 * 256 * sizeof(float);
  for (const auto& rank : plan.ranks)
    EXPECT_EQ(rank.received_bytes, bf16 * (ends + 61 * attention + 3 * dense + 58 * experts) + biases);
  const auto& w13 = tensor(plan, "model.layers.3.mlp.experts.w13_weight");
  EXPECT_EQ(shape_of(plan, w13), (std::vector<std::uint64_t>{16, 4096, 7168}));
  // Whole experts lie as they are sent: two runs of a layer, w13 and w2, and not one for each of 48 parameters.
  EXPECT_LT(plan.ranks[5].schedule.copies.size(), 2 * plan.model.parameters.size() / 16);
}

TEST(Parts, CoverEveryParameterOnceLargestFirstAndLeaveLittleForTheEnd) {
  for (const std::uint64_t dp : {1, 3}) {
    const auto plan = plan_of("llama-3.1-8b", 2, dp);
    const auto& parts = plan.ranks[1].schedule.whole;
    std::vector<int> seen(plan.model.parameters.size());
    std::vector<std::uint64_t> sizes;
    for (const auto& part : parts) {
      sizes.push_back(0);
      for (auto p = part.parameters.first; p < part.parameters.end(); ++p) {
        ++seen[p];
        sizes.back() += plan.ranks[1].shards[p].size_bytes();
      }
    }
    EXPECT_THAT(seen, testing::Each(1));
    EXPECT_TRUE(std::is_sorted(sizes.rbegin(), sizes.rend()));
    EXPECT_LE(sizes.back(), 128u << 20);
    EXPECT_EQ(parts.size() > 40, dp > 1);  // later replicas pull while the earlier ones do
  }
}

TEST(Plan, Llama8BOnFourRanks) {
  const TransferPlan plan = plan_of("llama-3.1-8b", 4);
  EXPECT_EQ(tensor(plan, "model.layers.0.self_attn.qkv_proj.weight").shape, (MatrixShape{1536, 4096}));
  EXPECT_EQ(tensor(plan, "model.layers.31.mlp.gate_up_proj.weight").shape, (MatrixShape{7168, 4096}));
  EXPECT_EQ(tensor(plan, "model.embed_tokens.weight").shape, (MatrixShape{32064, 4096}));
  EXPECT_EQ(tensor(plan, "lm_head.weight").shape, (MatrixShape{32064, 4096}));
  EXPECT_EQ(tensor(plan, "model.layers.0.self_attn.o_proj.weight").shape, (MatrixShape{4096, 1024}));
  EXPECT_EQ(tensor(plan, "model.layers.0.mlp.down_proj.weight").shape, (MatrixShape{4096, 3584}));
  EXPECT_EQ(prove_coverage(plan), "");
  // Only the 65 norms are sent more than once.
  EXPECT_EQ(plan.replication_bytes(), 3u * 65 * 4096 * 2);
}

TEST(Plan, Llama8BOnSixteenRanksSharesKeyValueHeads) {
  const TransferPlan plan = plan_of("llama-3.1-8b", 16);
  const EngineTensor& qkv = tensor(plan, "model.layers.0.self_attn.qkv_proj.weight");
  EXPECT_EQ(qkv.shape, (MatrixShape{512, 4096}));
  const std::size_t k = parameter(plan, "model.layers.0.self_attn.k_proj.weight");
  const std::size_t v = parameter(plan, "model.layers.0.self_attn.v_proj.weight");
  const std::uint64_t head_bytes = 128 * 4096 * 2;
  for (std::size_t t = 0; t < 16; ++t) {
    EXPECT_EQ(plan.ranks[t].shards[k].parameter_offset, t / 2 * head_bytes);
    EXPECT_EQ(plan.ranks[t].shards[k].destination_offset, qkv.offset + 2 * head_bytes);
    EXPECT_EQ(plan.ranks[t].shards[v].destination_offset, qkv.offset + 3 * head_bytes);
    EXPECT_EQ(plan.copy(t, k), t % 2 == 1);
  }
  EXPECT_EQ(prove_coverage(plan), "");
  EXPECT_EQ(plan.replication_bytes(), 15u * 65 * 4096 * 2 + 2u * 32 * 8 * head_bytes);
}

TEST(Plan, ColumnShardsAreStrided) {
  const TransferPlan plan = plan_of("llama-3.1-8b", 16);
  const std::size_t down = parameter(plan, "model.layers.0.mlp.down_proj.weight");
  const Shard& shard = plan.ranks[3].shards[down];
  EXPECT_EQ(shard.rows, 4096u);
  EXPECT_EQ(shard.row_bytes, 896u * 2);
  EXPECT_EQ(shard.parameter_pitch, 14336u * 2);
  EXPECT_EQ(shard.destination_pitch, 896u * 2);
  EXPECT_EQ(shard.parameter_offset, 3u * 896 * 2);
  EXPECT_FALSE(shard.contiguous_parameter());
  EXPECT_TRUE(shard.contiguous_destination());
}

TEST(Plan, OneRankIsOneCopyForEachPart) {
  for (const std::string shape : {"llama-3.2-1b", "llama-3.1-8b"}) {
    const TransferPlan plan = plan_of(shape, 1);
    EXPECT_EQ(plan.source_bytes(), plan.model.size_bytes()) << "gaps between parameters";
    const Schedule& schedule = plan.ranks[0].schedule;
    std::uint64_t copied = 0;
    for (const auto& part : schedule.whole) {
      ASSERT_EQ(part.copies.count, 1u);
      EXPECT_EQ(part.pack_steps.count, 0u);
      const Copy& copy = part.copies.of(schedule.copies).front();
      EXPECT_EQ(copy.source_offset, copy.destination_offset);
      copied += copy.size_bytes;
    }
    EXPECT_EQ(copied, plan.source_bytes());
    EXPECT_EQ(plan.egress_bytes(), plan.model.size_bytes());
    EXPECT_EQ(prove_coverage(plan), "");
  }
}

TEST(Plan, VocabularyPaddingBelongsToNoParameter) {
  const TransferPlan plan = plan_of("tiny", 8);
  const std::uint64_t row = 64 * 2;
  const EngineTensor& embedding = tensor(plan, "model.embed_tokens.weight");
  const EngineTensor& head = tensor(plan, "lm_head.weight");
  EXPECT_EQ(embedding.shape, (MatrixShape{32, 64}));
  EXPECT_TRUE(plan.ranks[5].padding.empty());
  EXPECT_THAT(plan.ranks[6].padding,
              ElementsAre(ByteRange{embedding.offset + 8 * row, 24 * row}, ByteRange{head.offset + 8 * row, 24 * row}));
  EXPECT_THAT(plan.ranks[7].padding,
              ElementsAre(ByteRange{embedding.offset, 32 * row}, ByteRange{head.offset, 32 * row}));
  EXPECT_EQ(plan.ranks[7].shards[0], Shard{});
  EXPECT_EQ(prove_coverage(plan), "");
}

TEST(Plan, SmolLM2OnThreeRanksButNotOnTwo) {
  EXPECT_EQ(prove_coverage(plan_of("smollm2-135m", 3)), "");
  const auto error = harness::error_of([] { plan_of("smollm2-135m", 2); });
  EXPECT_EQ(error.code(), ExitCode::config);
  EXPECT_STREQ(error.what(),
               "model.layers.0.self_attn.q_proj.weight: 9 attention heads cannot be divided evenly for tp 2");
  EXPECT_EQ(error.hint(), "this model can be cut for tp 1, 3");
  EXPECT_THROW(plan_of("tiny", 0), Error);
  EXPECT_THROW(plan_of("tiny", 1, 0), Error);
}

TEST(Plan, EverythingIsAligned) {
  const TransferPlan plan = plan_of("smollm2-135m", 3);
  for (const auto& piece : plan.sources.ranks[0].pieces) EXPECT_EQ(piece.offset % TransferPlan::alignment_bytes, 0u);
  for (const auto& t : plan.engine_tensors) EXPECT_EQ(t.offset % TransferPlan::alignment_bytes, 0u);
}

TEST(Plan, DigestTellsPlansApart) {
  std::set<std::string> digests;
  for (const std::string shape : {"tiny", "smollm2-135m"}) {
    for (const std::uint64_t tp : {1u, 3u, 4u}) {
      for (const std::uint64_t dp : {1u, 2u}) {
        if ((shape == "tiny") == (tp == 3)) continue;
        if (shape != "tiny" && tp == 4) continue;
        const std::string digest = plan_of(shape, tp, dp).digest;
        EXPECT_EQ(digest.size(), 32u);
        EXPECT_EQ(digest.find_first_not_of("0123456789abcdef"), std::string::npos);
        EXPECT_TRUE(digests.insert(digest).second);
        EXPECT_EQ(plan_of(shape, tp, dp).digest, digest);
      }
    }
  }
  ModelConfig config = load_model_config("tiny");
  config.dtype = DType::F16;  // the same bytes at the same places
  EXPECT_TRUE(digests.insert(make_plan(build_model(config), 1, 1).digest).second);
}

/// A segment of parameter `index` whose rows are all equally far apart where they come from.
Segment segment(std::size_t index, std::uint64_t source, std::uint64_t destination, std::uint64_t row_bytes,
                std::uint64_t rows, std::uint64_t pitch) {
  Segment s;
  s.parameter_index = index;
  s.source_offset = source;
  s.destination_offset = destination;
  s.row_bytes = s.destination_pitch = row_bytes;
  s.rows = rows;
  s.source_pitch = s.parameter_pitch = rows == 1 ? row_bytes : pitch;
  return s;
}

TEST(Schedule, MergesCopiesThatContinueOnBothSides) {
  const auto a = segment(0, 0, 100, 10, 1, 0), b = segment(1, 10, 110, 2, 3, 2), gap = segment(2, 16, 200, 4, 1, 0),
             strided = segment(3, 20, 204, 2, 4, 8);
  const Cut parts[] = {{0, {0, 4}}};
  const auto schedule = make_schedule({a, b, gap, strided}, 4, parts, 100);
  const auto& part = schedule.parts({0, 4}).front();
  const auto copies = part.copies.of(schedule.copies);
  EXPECT_THAT(std::vector<Copy>(copies.begin(), copies.end()), ElementsAre(Copy{0, 0, 100, 16}, Copy{0, 16, 200, 4}));
  EXPECT_EQ(part.pack_steps.count, 1u);
  EXPECT_THAT(schedule.parts({1, 2}), testing::SizeIs(2)) << "fewer parameters go one by one";
  EXPECT_EQ(prove_schedule(schedule, 4, 100), "");
}

TEST(Schedule, PacksStridedRowsIntoBoundedSteps) {
  const Cut parts[] = {{0, {0, 2}}};
  const auto schedule =
      make_schedule({segment(0, 0, 0, 300, 4, 900), segment(1, 5000, 1200, 200, 1, 0)}, 2, parts, 1000);
  const auto steps = schedule.whole[0].pack_steps.of(schedule.pack_steps);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_THAT(steps[0].of(schedule.packed)[0], (PackedRows{0, 0, 3, 0}));
  EXPECT_THAT(steps[1].of(schedule.packed)[0], (PackedRows{0, 3, 1, 0}));
  EXPECT_EQ(prove_schedule(schedule, 2, 1000), "");
  EXPECT_EQ(prove_schedule(schedule, 2, 899), "part 0: a pack step that does not fit its buffer");
  EXPECT_EQ(prove_schedule(schedule, 3, 1000), "parameters in no part");
}

TEST(Schedule, HalvesOfALargePartMeetBetweenPages) {
  const Cut parts[] = {{0, {0, 3}}};
  const auto schedule = make_schedule(
      {segment(0, 0, 0, 10 * mebibyte, 1, 0), segment(1, 10 * mebibyte, 10 * mebibyte, 2 * mebibyte, 3, 5 * mebibyte),
       segment(2, 25 * mebibyte, 16 * mebibyte, 100 * mebibyte, 1, 0)},
      3, parts, 200 * mebibyte);
  const auto& part = schedule.whole[0];
  const auto pulled = part.pulled.of(schedule.halves), pushed = part.pushed.of(schedule.halves);
  // Of 116 MiB 58 are pulled: 6 are strided, so 52 contiguous ones.
  EXPECT_THAT(std::vector<Copy>(pulled.begin(), pulled.end()),
              ElementsAre(Copy{0, 0, 0, 10 * mebibyte}, Copy{0, 25 * mebibyte, 16 * mebibyte, 42 * mebibyte}));
  EXPECT_THAT(std::vector<Copy>(pushed.begin(), pushed.end()),
              ElementsAre(Copy{0, 67 * mebibyte, 58 * mebibyte, 58 * mebibyte}));
  const auto any_pushed = [&](const Range& parameters) {
    return std::ranges::any_of(schedule.parts(parameters), [](const Part& each) { return each.pushed.count != 0; });
  };
  EXPECT_FALSE(any_pushed({0, 2})) << "10 MiB, and what is strided";
  EXPECT_TRUE(any_pushed({2, 1}));
  EXPECT_EQ(prove_schedule(schedule, 3, 200 * mebibyte), "");
}

TEST(Schedule, TasksMayCutTheRowsOfAWideSegment) {
  const Cut parts[] = {{0, {0, 1}}};
  const auto wide = segment(0, 0, 0, copy_block_bytes + 300, 4, 3 * copy_block_bytes);
  EXPECT_EQ(prove_schedule(make_schedule({wide}, 1, parts, 4 * copy_block_bytes), 1, 4 * copy_block_bytes), "");
}

TEST(Schedule, BlocksAreWholeRowsOrAnyBytesOfARun) {
  const auto blocks_of = [](const Segment& s, std::uint64_t bytes) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> blocks;  // offsets in the slot, rows
    for (BlockCursor cursor(s, bytes); !cursor.done(); cursor.next())
      blocks.emplace_back(cursor.block().destination_offset, cursor.block().rows);
    return blocks;
  };
  using Blocks = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  EXPECT_EQ(blocks_of(segment(0, 0, 0, 10, 5, 30), 25), (Blocks{{0, 2}, {20, 2}, {40, 1}}));
  EXPECT_EQ(blocks_of(segment(0, 0, 0, 10, 3, 30), 4), (Blocks{{0, 1}, {10, 1}, {20, 1}})) << "a row at least";
  EXPECT_EQ(blocks_of(segment(0, 0, 7, 10, 5, 10), 25), (Blocks{{7, 1}, {32, 1}}));
  EXPECT_TRUE(blocks_of(Segment{}, 25).empty());
  std::vector<Segment> tasks;
  append_tasks(segment(0, 0, 0, 2 * copy_block_bytes + warp_run_bytes + 3, 1, 0), copy_block_bytes, tasks);
  ASSERT_EQ(tasks.size(), 4u);  // two blocks in rows, a single run, and what is left
  EXPECT_EQ(tasks[0].rows, copy_block_bytes / warp_run_bytes);
  EXPECT_EQ(tasks[2].row_bytes, warp_run_bytes);
  EXPECT_EQ(tasks[3].row_bytes, 3u);
}

TEST(Describe, WhatAUserReads) {
  const std::string text = describe(plan_of("llama-3.1-8b", 16, 2), PlanView{.all = true, .wide = true});
  for (const std::string part :
       {"model.layers.0.self_attn.qkv_proj.weight ", "[512, 4096]", "q_proj + k_proj + v_proj",
        "rows, kv heads (each on 2 ranks)", "llama, 291 parameters, 16060522496 bytes (16.1 GB)",
        "tp 16, dp 2: 33 ranks with the trainer", "16605380608 bytes (16.6 GB), 1.0339 x the model",
        "self_attn.k_proj.weight          x 32  268435456  bytes", "proven"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, Not(HasSubstr("VIOLATED")));
  EXPECT_LT(text.find("proven"), text.find("model.embed_tokens.weight "));
  TransferPlan broken = plan_of("tiny", 2);
  broken.ranks[1].shards[0].destination_offset += 2;
  EXPECT_THAT(describe(broken), HasSubstr("VIOLATED: tp rank 1: writes to\n"));
}

TEST(Describe, EqualTensorsOfLayersAreOneRow) {
  auto config = load_model_config("tiny");
  config.layers = 8;
  auto plan = make_plan(build_model(config), 2, 1);
  const auto rows_of = [&](const std::string& rest) {
    std::vector<std::string> found;
    std::istringstream lines(describe(plan, PlanView{.wide = true}));
    for (std::string line; std::getline(lines, line);) {
      const auto name = line.substr(0, line.find(' '));
      if (name.ends_with(rest)) found.push_back(name);
    }
    return found;
  };
  const std::string rest = ".mlp.down_proj.weight";
  EXPECT_THAT(rows_of(rest), ElementsAre("model.layers.{0..7}" + rest));
  const auto tensor = [&](int layer) {
    return std::ranges::find(plan.engine_tensors, fmt::format("model.layers.{}{}", layer, rest), &EngineTensor::name);
  };
  tensor(3)->dtype = DType::F8_E4M3;
  EXPECT_THAT(rows_of(rest), ElementsAre("model.layers.{0..2,4..7}" + rest, "model.layers.3" + rest));
  for (const int layer : {1, 5, 7}) tensor(layer)->dtype = DType::F8_E4M3;
  EXPECT_THAT(rows_of(rest), ElementsAre("model.layers.{0..6..2}" + rest, "model.layers.{1..7..2}" + rest));
  for (const int layer : {3, 5, 7}) tensor(layer)->dtype = DType::BF16;
  EXPECT_THAT(rows_of(rest), ElementsAre("model.layers.{0,2..7}" + rest, "model.layers.1" + rest));
  tensor(0)->dtype = DType::F8_E4M3;
  EXPECT_THAT(rows_of(rest), ElementsAre("model.layers.{0,1}" + rest, "model.layers.{2..7}" + rest));
}

}  // namespace
}  // namespace weightcast
