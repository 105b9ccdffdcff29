#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "weightcast/core/error.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/transport/blocks.hpp"

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

TEST(Parts, CoverEveryParameterOnceLargestFirstAndLeaveLittleForTheEnd) {
  for (const std::uint64_t dp : {1, 3}) {
    const auto plan = plan_of("llama-3.1-8b", 2, dp);
    const auto parts = parts_of(plan, 1);
    std::vector<int> seen(plan.model.parameters.size());
    std::vector<std::uint64_t> sizes;
    for (const auto& part : parts) {
      sizes.push_back(0);
      for (auto p = part.first; p < part.first + part.count; ++p) {
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
    EXPECT_EQ(plan.offset_in_parameter(t, k), t / 2 * head_bytes);
    EXPECT_EQ(plan.ranks[t].shards[k].destination, qkv.offset + 2 * head_bytes);
    EXPECT_EQ(plan.ranks[t].shards[v].destination, qkv.offset + 3 * head_bytes);
    EXPECT_EQ(plan.copy(t, k), t % 2 == 1);
  }
  EXPECT_EQ(prove_coverage(plan), "");
  EXPECT_EQ(plan.replication_bytes(), 15u * 65 * 4096 * 2 + 2u * 32 * 8 * head_bytes);
}

TEST(Plan, ColumnShardsAreStrided) {
  const TransferPlan plan = plan_of("llama-3.1-8b", 16);
  const std::size_t down = parameter(plan, "model.layers.0.mlp.down_proj.weight");
  const Segment& shard = plan.ranks[3].shards[down];
  EXPECT_EQ(shard.rows, 4096u);
  EXPECT_EQ(shard.row_bytes, 896u * 2);
  EXPECT_EQ(shard.source_pitch, 14336u * 2);
  EXPECT_EQ(shard.destination_pitch, 896u * 2);
  EXPECT_EQ(plan.offset_in_parameter(3, down), 3u * 896 * 2);
  EXPECT_FALSE(shard.contiguous_source());
  EXPECT_TRUE(shard.contiguous_destination());
}

TEST(Plan, OneRankIsOneMove) {
  for (const std::string shape : {"llama-3.2-1b", "llama-3.1-8b"}) {
    const TransferPlan plan = plan_of(shape, 1);
    EXPECT_EQ(plan.source_bytes, plan.model.size_bytes()) << "gaps between parameters";
    EXPECT_THAT(plan.ranks[0].moves,
                ElementsAre(Segment{0, 0, plan.source_bytes, 1, plan.source_bytes, plan.source_bytes}));
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
  EXPECT_EQ(plan.ranks[7].shards[0], Segment{});
  EXPECT_EQ(prove_coverage(plan), "");
}

TEST(Plan, SmolLM2OnThreeRanksButNotOnTwo) {
  EXPECT_EQ(prove_coverage(plan_of("smollm2-135m", 3)), "");
  try {
    plan_of("smollm2-135m", 2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_STREQ(error.what(),
                 "model.layers.0.self_attn.q_proj.weight: 9 attention heads cannot be divided evenly for tp 2");
    EXPECT_EQ(error.hint(), "this model can be cut for tp 1, 3");
  }
  EXPECT_THROW(plan_of("tiny", 0), Error);
  EXPECT_THROW(plan_of("tiny", 1, 0), Error);
}

TEST(Plan, EverythingIsAligned) {
  const TransferPlan plan = plan_of("smollm2-135m", 3);
  for (const auto offset : plan.source_offsets) EXPECT_EQ(offset % TransferPlan::alignment_bytes, 0u);
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

TEST(Coalesce, MergesWhatContinuesOnBothSides) {
  const Segment a{0, 100, 10, 1, 10, 10}, b{10, 110, 6, 1, 6, 6}, elsewhere{16, 200, 4, 1, 4, 4},
      rows{20, 204, 2, 8, 2, 2};
  EXPECT_THAT(coalesce({elsewhere, b, a}), ElementsAre(Segment{0, 100, 16, 1, 16, 16}, elsewhere));
  EXPECT_THAT(coalesce({rows, elsewhere}), ElementsAre(Segment{16, 200, 20, 1, 20, 20}));
  EXPECT_TRUE(coalesce({Segment{}}).empty());
}

TEST(Coalesce, StridedSegmentsGrowByRows) {
  const Segment a{0, 0, 4, 3, 16, 4}, b{48, 12, 4, 2, 16, 4}, other_pitch{80, 20, 4, 2, 32, 4};
  EXPECT_THAT(coalesce({b, a, other_pitch}), ElementsAre(Segment{0, 0, 4, 5, 16, 4}, other_pitch));
}

TEST(Describe, WhatAUserReads) {
  const std::string text = describe(plan_of("llama-3.1-8b", 16, 2));
  for (const std::string part :
       {"model.layers.0.self_attn.qkv_proj.weight ", "[512, 4096]", "q_proj + k_proj + v_proj",
        "rows, kv heads (each on 2 ranks)", "llama, 291 parameters, 16060522496 bytes (16.1 GB)",
        "tp 16, dp 2: 33 ranks with the trainer", "16605380608 bytes (16.6 GB), 1.0339 x the model",
        "self_attn.k_proj.weight          x 32  268435456  bytes", "proven"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, Not(HasSubstr("VIOLATED")));
  TransferPlan broken = plan_of("tiny", 2);
  broken.ranks[1].shards[0].destination += 2;
  EXPECT_THAT(describe(broken), HasSubstr("VIOLATED: tp rank 1: writes to model.embed_tokens.weight"));
}

}  // namespace
}  // namespace weightcast
