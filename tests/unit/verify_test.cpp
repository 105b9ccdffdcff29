// The proof's two sides and the check against a reference, over random models and every way to cut them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "harness/error_of.hpp"
#include "harness/model_bytes.hpp"
#include "harness/random_model.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/verify/reference_check.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {
namespace {

using harness::error_of;
using harness::number;
using ::testing::HasSubstr;
using Parameters = std::vector<std::vector<std::byte>>;

/// A random model that 8 ranks can hold, with everything that rules know: biases, shared heads, padding, tied heads.
Model random_model() {
  auto c = harness::random_config({.layers = 2, .hidden = 40, .group = 1, .head_dim = 6});
  c.kv_heads = *rc::gen::element<std::uint64_t>(1, 2, 4, 8);
  c.heads = 8 * number(1, 2);
  c.intermediate = 8 * number(1, 5);
  c.vocabulary = number(1, 200);
  c.tied_embeddings = *rc::gen::arbitrary<bool>();
  c.attention_bias = c.attention_bias || *rc::gen::arbitrary<bool>();
  auto& experts = c.experts;
  if (experts.count > 0) {
    experts.intermediate =
        spec_of(c.family).experts.size_key == "intermediate_size" ? c.intermediate : 8 * number(1, 3);
    if (experts.shared > 0) experts.shared = 8 * number(1, 3);
  }
  auto model = build_model(c, harness::random_format(c));
  RC_TAG(std::string(name(c.family)), model.format.ep);
  return model;
}

/// Of 1, 2, 4 and 8 those that groups of experts can be made of.
std::vector<std::uint64_t> tensor_parallel_sizes(const Model& model) {
  auto sizes = possible_tp(model);
  std::erase_if(sizes, [](std::uint64_t tp) { return tp > 8; });
  return sizes;
}

/// The trainer's memory: each parameter where the plan wants it.
std::vector<std::byte> source_of(const TransferPlan& plan, const Parameters& parameters) {
  std::vector<std::byte> source(plan.source_bytes(), std::byte{0xee});
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    std::ranges::copy(harness::section_bytes(plan.model.parameters[p], parameters[p]),
                      source.begin() + static_cast<std::ptrdiff_t>(plan.source_offset(p)));
  }
  return source;
}

ReadReference reader(const Parameters& parameters) {
  return [&parameters](std::size_t p, std::uint64_t offset, std::span<std::byte> to) {
    ASSERT_LE(offset + to.size(), parameters.at(p).size());
    std::memcpy(to.data(), parameters[p].data() + offset, to.size());
  };
}

/// All that is claimed of one plan: "" or what is wrong.
std::string check_plan(const TransferPlan& plan, const Parameters& parameters) {
  const auto source = source_of(plan, parameters);
  SourceDigests sent(plan);
  sent.begin(source.data(), {0, parameters.size()});
  std::uint64_t steps = 0;
  while (sent.work()) ++steps;
  if (steps == 0 || sent.work()) return "work() does not end when it says so";
  std::vector<Digest> sums(parameters.size());
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    const auto slot = harness::slot_of(plan, t, parameters);
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto& shard = plan.ranks[t].shards[p];
      const auto held = digest_of_shard(plan, t, p, slot.data());
      if (held != sent.claim().shard(t, p))
        return fmt::format("rank {} holds another {} than was sent", t, plan.model.parameters[p].info.name);
      if (!plan.copy(t, p)) sums[p] += held;
      // In the blocks in which it arrives.
      Digest parts;
      for (const auto& segment : plan.ranks[t].schedule.segments_of(0, {p, 1})) {
        const auto third = std::max<std::uint64_t>(shard.size_bytes() / 3, 1);
        for (BlockCursor cursor(segment, third); !cursor.done(); cursor.next())
          parts += digest_of_shard(cursor.block(), slot.data());
      }
      if (parts != held) return fmt::format("the parts of {} do not add up", plan.model.parameters[p].info.name);
    }
  }
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const auto whole = harness::section_digest(plan.model.parameters[p], parameters[p]);
    if (sums[p] != whole)
      return fmt::format("the shards of {} do not add up to it", plan.model.parameters[p].info.name);
    if (sent.claim().held(p) != whole)
      return fmt::format("the digest of {} as sent is wrong", plan.model.parameters[p].info.name);
  }
  return {};
}

RC_GTEST_PROP(ShardDigests, AddUpToTheParameterForEveryTp, ()) {
  const auto model = random_model();
  const auto parameters = harness::model_bytes(model, *rc::gen::arbitrary<std::uint64_t>());
  for (const auto tp : tensor_parallel_sizes(model)) RC_ASSERT(check_plan(make_plan(model, tp, 1), parameters) == "");
}

/// Shards larger than the steps of SourceDigests (1 MiB) and than the blocks of the reference check (4 MiB).
Model large_model() {
  const ModelConfig c{
      .layers = 1, .hidden = 1024, .heads = 8, .kv_heads = 2, .head_dim = 16, .intermediate = 4096, .vocabulary = 1000};
  return build_model(c);
}

TEST(ShardDigests, OfShardsLargerThanAStep) {
  const auto model = large_model();
  const auto parameters = harness::model_bytes(model, 5);
  for (const std::uint64_t tp : {1, 2, 8})
    EXPECT_EQ(check_plan(make_plan(model, tp, 1), parameters), "") << "tp " << tp;
}

TEST(ShardDigests, OfARangeOfParametersLeaveTheOthers) {
  const auto model = build_model(load_model_config("tiny"));
  const auto plan = make_plan(model, 2, 1);
  const auto before = harness::model_bytes(model, 1), after = harness::model_bytes(model, 2);
  const auto old_source = source_of(plan, before), new_source = source_of(plan, after);
  SourceDigests digests(plan, 2);
  digests.begin(old_source.data(), {0, before.size()});
  digests.finish();
  digests.begin(new_source.data(), {2, 3});
  digests.finish();
  for (std::size_t p = 0; p < before.size(); ++p) {
    EXPECT_EQ(digests.claim().held(p), digest_bytes(p >= 2 && p < 5 ? after[p] : before[p], 0))
        << model.parameters[p].info.name;
  }
}

Region on_host(std::vector<std::byte>& slot) {
  return {slot.data(), slot.size(), MemoryKind::host, -1};
}

RC_GTEST_PROP(Reference, FillsWhatThePlanMoves, ()) {
  const auto model = random_model();
  const auto parameters = harness::model_bytes(model, 3);
  const auto tp = *rc::gen::elementOf(tensor_parallel_sizes(model));
  const auto plan = make_plan(model, tp, 1);
  for (std::size_t t = 0; t < tp; ++t) {
    std::vector<std::byte> slot(plan.slot_bytes);
    for (const auto& range : plan.ranks[t].padding) slot[range.offset + range.size_bytes - 1] = std::byte{1};
    std::atomic<std::uint64_t> filled = 0;
    fill_from_reference(plan, t, on_host(slot), reader(parameters), t % 3,
                        [&](std::uint64_t bytes) { filled += bytes; });
    RC_ASSERT(slot == harness::slot_of(plan, t, parameters));
    RC_ASSERT(filled == plan.ranks[t].received_bytes);
    const auto check = check_against_reference(plan, t, on_host(slot), reader(parameters), 3);
    RC_ASSERT(check.mismatched.empty());
    RC_ASSERT(!check.first);
  }
}

/// Every byte of `damaged` that the check should see, one at a time: it names the parameter and the place.
void find_flips(const TransferPlan& plan, const Parameters& parameters, std::uint64_t stride) {
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    auto slot = harness::slot_of(plan, t, parameters);
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto& shard = plan.ranks[t].shards[p];
      const auto& info = plan.model.parameters[p].info;
      const auto last = shard.size_bytes();
      for (std::uint64_t i = 0; i < last; i = i + 1 == last ? last : std::min(i + stride, last - 1)) {
        const auto at = shard.destination_offset + i / shard.row_bytes * shard.destination_pitch + i % shard.row_bytes;
        slot[at] ^= std::byte{0x10};
        const auto check = check_against_reference(plan, t, on_host(slot), reader(parameters), 3);
        ASSERT_EQ(check.mismatched, std::vector<std::size_t>{p}) << info.name << " byte " << i << " of rank " << t;
        const auto width = static_cast<std::uint64_t>(bits(info.dtype)) / 8;
        ASSERT_TRUE(check.first);
        ASSERT_THAT(*check.first,
                    HasSubstr(info.name + ": byte " + std::to_string(at / width * width) + " of the slot holds 0x"));
        slot[at] ^= std::byte{0x10};
      }
    }
    ASSERT_FALSE(check_against_reference(plan, t, on_host(slot), reader(parameters), 3).first);
  }
}

TEST(Reference, FindsAFlippedByteInEveryShard) {
  const auto model = build_model(
      {.layers = 1, .hidden = 8, .heads = 8, .kv_heads = 2, .head_dim = 2, .intermediate = 16, .vocabulary = 100});
  const auto parameters = harness::model_bytes(model, 4);
  for (const std::uint64_t tp : {1, 2, 4, 8}) find_flips(make_plan(model, tp, 1), parameters, 7);
}

TEST(Reference, FindsAFlippedByteBeyondTheFirstBlock) {
  const auto model = large_model();
  find_flips(make_plan(model, 2, 1), harness::model_bytes(model, 4), 3'333'333);
}

TEST(Reference, ShowsBothValues) {
  const auto model = build_model(load_model_config("tiny"));
  const auto plan = make_plan(model, 1, 1);
  auto parameters = harness::model_bytes(model, 1);
  const auto p = static_cast<std::size_t>(model.find("model.norm.weight"));
  parameters[p][6] = std::byte{0x80};  // element 3 is 1
  parameters[p][7] = std::byte{0x3f};
  auto slot = harness::slot_of(plan, 0, parameters);
  slot[plan.ranks[0].shards[p].destination_offset + 7] = std::byte{0xbf};
  const auto check = check_against_reference(plan, 0, on_host(slot), reader(parameters), 1);
  ASSERT_TRUE(check.first);
  EXPECT_EQ(*check.first,
            fmt::format("model.norm.weight: byte {} of the slot holds 0xbf80 (-1), the reference 0x3f80 (1)",
                        plan.ranks[0].shards[p].destination_offset + 6));
}

TEST(Reference, NamesTheFirstAndListsAll) {
  const auto model = build_model(load_model_config("tiny"));
  const auto plan = make_plan(model, 2, 1);
  const auto parameters = harness::model_bytes(model, 1), others = harness::model_bytes(model, 2);
  auto slot = harness::slot_of(plan, 1, others);
  const auto check = check_against_reference(plan, 1, on_host(slot), reader(parameters), 4);
  EXPECT_EQ(check.mismatched.size(), parameters.size());
  ASSERT_TRUE(check.first);
  EXPECT_THAT(*check.first, HasSubstr(model.parameters[0].info.name));
}

TEST(Reference, PaddingMustBeZero) {
  // 128 rows of vocabulary: the third of four ranks has 1 and 31 of padding, the last nothing but padding.
  const auto model = build_model(
      {.layers = 1, .hidden = 4, .heads = 4, .kv_heads = 4, .head_dim = 1, .intermediate = 4, .vocabulary = 65});
  const auto plan = make_plan(model, 4, 1);
  const auto parameters = harness::model_bytes(model, 1);
  std::uint64_t padding_bytes = 0;
  for (std::size_t t = 0; t < 4; ++t) {
    auto slot = harness::slot_of(plan, t, parameters);
    for (const auto& range : plan.ranks[t].padding) {
      padding_bytes += range.size_bytes;
      for (const auto at : {range.offset, range.offset + range.size_bytes - 1}) {
        slot[at] = std::byte{1};
        const auto check = check_against_reference(plan, t, on_host(slot), reader(parameters), 3);
        EXPECT_TRUE(check.mismatched.empty());
        ASSERT_TRUE(check.first) << "rank " << t << " byte " << at;
        EXPECT_THAT(*check.first, HasSubstr("padding"));
        slot[at] = std::byte{0};
      }
    }
    EXPECT_FALSE(check_against_reference(plan, t, on_host(slot), reader(parameters), 3).first);
  }
  EXPECT_EQ(padding_bytes, 2u * 63 * 4 * 2) << "63 rows of 4 elements of 2 bytes, in the embedding and in the head";
}

TEST(Reference, AReaderThatFailsIsHeard) {
  const auto model = build_model(load_model_config("tiny"));
  const auto plan = make_plan(model, 2, 1);
  std::vector<std::byte> slot(plan.slot_bytes);
  const ReadReference broken = [](std::size_t p, std::uint64_t, std::span<std::byte>) {
    if (p == 3) fail(ExitCode::bad_data, "the file ends too early");
  };
  EXPECT_EQ(error_of([&] { fill_from_reference(plan, 0, on_host(slot), broken, 4); }).code(), ExitCode::bad_data);
  EXPECT_EQ(error_of([&] { check_against_reference(plan, 0, on_host(slot), broken, 4); }).code(), ExitCode::bad_data);
}

}  // namespace
}  // namespace weightcast
