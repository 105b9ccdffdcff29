// What a training loop gives becomes what is sent: rounded masters, copies, and one list of all that does not fit.
#include "weightcast/trainer/training_tensors.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

#include "harness/error_of.hpp"
#include "harness/training_plan.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/trainer/trainer.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace {
std::atomic<std::uint64_t> allocations{0};  // of all threads
}

[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace weightcast {
namespace {

using harness::training_plan;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// A training loop's tensors: random bits of the given dtype, in another order than the model's.
struct Loop {
  Loop(const Model& model, DType dtype, std::uint64_t seed = 1) {
    std::mt19937_64 random(seed);
    for (auto rule = model.parameters.rbegin(); rule != model.parameters.rend(); ++rule) {
      TrainingTensor tensor;
      tensor.info = rule->info;
      tensor.info.dtype = dtype;
      auto& bytes = data.emplace_back(*tensor.info.size_bytes());
      for (auto& byte : bytes) byte = static_cast<std::byte>(random());
      tensor.data = bytes.data();
      tensors.push_back(tensor);
    }
  }
  TrainingTensor& operator[](std::string_view name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.info.name == name; });
  }
  std::vector<std::vector<std::byte>> data;
  std::vector<TrainingTensor> tensors;
};

/// A trainer with memory for what it sends, and a loop's masters for it.
struct Training {
  explicit Training(bool tied = false) : plan(training_plan(DType::BF16, tied)) { trainer.reserve(); }
  const TransferPlan plan;
  Trainer trainer{plan};
  Loop loop{plan.model, DType::F32};
};

/// What the parameter must be, element by element.
std::vector<std::byte> expected_of(const TrainingTensor& tensor, DType wire) {
  const auto& shape = tensor.info.shape;
  const auto given_bytes = static_cast<std::size_t>(bits(tensor.info.dtype)) / 8;
  const auto columns = shape.size() > 1 ? shape[1] : 1;
  std::vector<std::byte> result;
  for (std::uint64_t i = 0; i < *tensor.info.elements(); ++i) {
    auto offset = static_cast<std::ptrdiff_t>(i * given_bytes);
    if (!tensor.strides_bytes.empty()) {
      offset = static_cast<std::ptrdiff_t>(i / columns) * tensor.strides_bytes[0];
      if (shape.size() > 1) offset += static_cast<std::ptrdiff_t>(i % columns) * tensor.strides_bytes[1];
    }
    const auto* const from = static_cast<const std::byte*>(tensor.data) + offset;
    if (tensor.info.dtype == wire) {
      result.insert(result.end(), from, from + given_bytes);
      continue;
    }
    std::uint32_t element = 0;
    std::memcpy(&element, from, given_bytes);
    const auto wide = tensor.info.dtype == DType::F32   ? element
                      : tensor.info.dtype == DType::F16 ? float_of_f16(static_cast<std::uint16_t>(element))
                                                        : float_of_bf16(static_cast<std::uint16_t>(element));
    const auto narrowed = narrow(wire == DType::BF16 ? NarrowFloat::bf16 : NarrowFloat::f16, wide);
    const auto* const bytes = reinterpret_cast<const std::byte*>(&narrowed);
    result.insert(result.end(), bytes, bytes + 2);
  }
  return result;
}

void expect_filled(const TransferPlan& plan, const Loop& loop, const Region& region) {
  for (const auto& tensor : loop.tensors) {
    const auto index = plan.model.find(tensor.info.name);
    if (index < 0) continue;
    const auto p = static_cast<std::size_t>(index);
    const auto expected = expected_of(tensor, plan.model.parameters[p].info.dtype);
    ASSERT_EQ(std::memcmp(region.data + plan.source_offset(p), expected.data(), expected.size()), 0)
        << tensor.info.name;
  }
}

std::string refusal(Trainer& trainer, const Loop& loop) {
  const auto error = harness::error_of([&] { trainer.fill(0, loop.tensors); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_FALSE(error.hint().empty());
  return error.what();
}

TEST(TrainerFill, MastersAreRoundedAndOwnTypesCopied) {
  for (const auto wire : {DType::BF16, DType::F16, DType::F32}) {
    const auto plan = training_plan(wire);
    Trainer trainer(plan);
    EXPECT_EQ(trainer.reserve(), 0U);
    EXPECT_EQ(trainer.reserve(), 1U);
    for (const auto given : {DType::F32, wire}) {
      const Loop loop(plan.model, given, static_cast<std::uint64_t>(given));
      trainer.fill(1, loop.tensors);
      expect_filled(plan, loop, trainer.source(1));
    }
  }
}

TEST(TrainerFill, TheOther16BitTypeIsRoundedAndWideningRefused) {
  for (const auto wire : {DType::BF16, DType::F16}) {
    const auto plan = training_plan(wire);
    Trainer trainer(plan);
    trainer.reserve();
    const Loop loop(plan.model, wire == DType::BF16 ? DType::F16 : DType::BF16);
    trainer.fill(0, loop.tensors);
    expect_filled(plan, loop, trainer.source(0));
    EXPECT_THAT(refusal(trainer, Loop(plan.model, DType::F64)), HasSubstr("model.norm.weight is F64"));
  }
  const auto plan = training_plan(DType::F32);
  Trainer trainer(plan);
  trainer.reserve();
  EXPECT_THAT(refusal(trainer, Loop(plan.model, DType::BF16)), HasSubstr("model.norm.weight is BF16"));
}

/// The same memory seen otherwise, all within what the loop has: transposed, reversed, spread, one element many times.
void make_strided(Loop& loop) {
  std::size_t kind = 0;
  for (auto& tensor : loop.tensors) {
    const auto width = static_cast<std::int64_t>(bits(tensor.info.dtype)) / 8;
    const auto rows = static_cast<std::int64_t>(tensor.info.shape.front());
    const auto columns = tensor.info.shape.size() > 1 ? static_cast<std::int64_t>(tensor.info.shape[1]) : 1;
    const auto last = static_cast<const std::byte*>(tensor.data) + (rows * columns - 1) * width;
    const bool vector = tensor.info.shape.size() == 1;
    switch (++kind % 5) {
      case 0: tensor.strides_bytes = {width, rows * width}; break;
      case 1: tensor.strides_bytes = {-columns * width, -width}; break;
      case 2: tensor.strides_bytes = {0, width}; break;
      case 3: tensor.strides_bytes = {columns * width, 0}; break;
      case 4: tensor.strides_bytes = {columns / 2 * width, -width}; break;
    }
    if (vector) tensor.strides_bytes = {kind % 2 == 0 ? 0 : -width};
    if (kind % 5 == 1 || vector) tensor.data = last;
    if (kind % 5 == 4 && !vector) tensor.data = static_cast<const std::byte*>(tensor.data) + (columns - 1) * width;
  }
}

TEST(TrainerFill, AnyStridesAreTaken) {
  for (const auto given : {DType::F32, DType::BF16, DType::F16}) {
    const auto plan = training_plan(DType::BF16);
    Trainer trainer(plan);
    trainer.reserve();
    Loop loop(plan.model, given);
    make_strided(loop);
    trainer.fill(0, loop.tensors);
    expect_filled(plan, loop, trainer.source(0));
    for (auto& tensor : loop.tensors) EXPECT_NO_THROW(trainer.put(0, tensor));
    expect_filled(plan, loop, trainer.source(0));
  }
}

TEST(TrainerFill, StridesThatDoNotDescribeTheTensorAreRefusedByName) {
  auto [plan, trainer, loop] = Training();
  loop["model.norm.weight"].strides_bytes = {4, 4};
  loop["lm_head.weight"].strides_bytes = {72 * 4, 2};
  loop["model.layers.0.mlp.up_proj.weight"].strides_bytes = {INT64_MAX, 4};
  EXPECT_THAT(refusal(trainer, loop), AllOf(HasSubstr("model.norm.weight has strides that do not describe it"),
                                            HasSubstr("lm_head.weight is not aligned"),
                                            HasSubstr("model.layers.0.mlp.up_proj.weight has strides that do not")));
}

TEST(TrainerFill, AllocatesNothingFromTheSecondTimeOn) {
  auto [plan, trainer, loop] = Training();
  trainer.fill(0, loop.tensors);
  const auto before = allocations.load();
  for (int i = 0; i < 10; ++i) trainer.fill(0, loop.tensors);
  EXPECT_EQ(allocations.load(), before);
}

TEST(TrainerFill, AllocatesNothingForFp8Either) {
  const auto unquantized = training_plan(DType::BF16).model;
  const auto plan =
      make_plan(build_model(unquantized.config, {.ep = 1, .quantization = Quantization::fp8_channel}), 1, 1);
  Trainer trainer(plan);
  trainer.reserve();
  const Loop loop(unquantized, DType::F32);
  trainer.fill(0, loop.tensors);
  const auto before = allocations.load();
  for (int i = 0; i < 10; ++i) trainer.fill(0, loop.tensors);
  EXPECT_EQ(allocations.load(), before);
}

TEST(TrainerFill, FollowsTheTableWhenItChanges) {
  auto [plan, trainer, loop] = Training();
  trainer.fill(0, loop.tensors);
  std::reverse(loop.tensors.begin(), loop.tensors.end());
  loop["model.norm.weight"] = Loop(plan.model, DType::BF16)["model.norm.weight"];
  std::vector<std::byte> own(*loop["model.norm.weight"].info.size_bytes(), std::byte{7});
  loop["model.norm.weight"].data = own.data();
  trainer.fill(0, loop.tensors);
  expect_filled(plan, loop, trainer.source(0));
}

TEST(TrainerFill, ListsEveryDifferenceInOneError) {
  auto [plan, trainer, loop] = Training();
  loop["model.norm.weight"].info.name = "model.nrom.weight";
  loop["lm_head.weight"].info.shape = {72, 8011};
  loop["model.layers.0.mlp.up_proj.weight"].info.dtype = DType::F64;
  loop["model.layers.1.mlp.up_proj.weight"].info.dtype = DType::I16;
  loop.tensors.push_back(loop["model.layers.0.mlp.down_proj.weight"]);
  const auto before = std::vector<std::byte>(trainer.source(0).bytes().begin(), trainer.source(0).bytes().end());
  EXPECT_THAT(refusal(trainer, loop), AllOf(HasSubstr("6 differences"), HasSubstr("model.norm.weight is missing"),
                                            HasSubstr("model.nrom.weight is unknown"),
                                            HasSubstr("lm_head.weight is F32 [72, 8011], expected BF16 [8011, 72]"),
                                            HasSubstr("model.layers.0.mlp.up_proj.weight is F64"),
                                            HasSubstr("model.layers.1.mlp.up_proj.weight is I16"),
                                            HasSubstr("model.layers.0.mlp.down_proj.weight appears twice")));
  EXPECT_TRUE(std::equal(before.begin(), before.end(), trainer.source(0).bytes().begin())) << "something was written";
  // A table that was refused once is refused again, and a good one is taken after it.
  refusal(trainer, loop);
  const Loop good(plan.model, DType::F32);
  trainer.fill(0, good.tensors);
  expect_filled(plan, good, trainer.source(0));
}

TEST(TrainerFill, TheListIsBounded) {
  auto [plan, trainer, loop] = Training();
  for (auto& tensor : loop.tensors) tensor.info.name += "?";
  EXPECT_THAT(refusal(trainer, loop), AllOf(HasSubstr("more"), Not(HasSubstr("unknown"))));
  Loop empty(plan.model, DType::F32);
  for (auto& tensor : empty.tensors) tensor.data = nullptr;
  EXPECT_THAT(refusal(trainer, empty), AllOf(HasSubstr("model.embed_tokens.weight has no data"), HasSubstr("more")));
}

TEST(TrainerFill, MemoryThatCannotBeReadIsRefusedByName) {
  auto [plan, trainer, loop] = Training();
  loop["model.norm.weight"].data = nullptr;
  auto& shifted = loop["lm_head.weight"].data;
  shifted = static_cast<const std::byte*>(shifted) + 1;
  EXPECT_THAT(refusal(trainer, loop),
              AllOf(HasSubstr("model.norm.weight has no data"), HasSubstr("lm_head.weight is not aligned")));
}

TEST(TrainerFill, ATiedHeadMustHoldWhatTheEmbeddingHolds) {
  auto [plan, trainer, loop] = Training(true);
  auto head = loop["model.embed_tokens.weight"];
  head.info.name = "lm_head.weight";
  loop.tensors.push_back(head);
  trainer.fill(0, loop.tensors);
  expect_filled(plan, loop, trainer.source(0));
  const auto* const from = static_cast<const std::byte*>(head.data);
  std::vector<std::byte> other(from, from + *head.info.size_bytes());
  loop.tensors.back().data = other.data();
  trainer.fill(0, loop.tensors);
  expect_filled(plan, loop, trainer.source(0));
  other.back() ^= std::byte{0x40};
  EXPECT_THAT(refusal(trainer, loop), HasSubstr("lm_head.weight differs from model.embed_tokens.weight"));
  expect_filled(plan, Loop(plan.model, DType::F32), trainer.source(0));
  // One after the other, each may be the first.
  const auto put = [&](std::string_view name, const void* data, std::string_view before) {
    auto tensor = head;
    tensor.info.name = name;
    tensor.data = data;
    if (!before.empty()) return trainer.expect_held(0, tensor, before);
    EXPECT_EQ(trainer.put(0, tensor), 0U);
  };
  put("lm_head.weight", head.data, "");
  put("model.embed_tokens.weight", head.data, "lm_head.weight");
  EXPECT_THROW(put("model.embed_tokens.weight", other.data(), "lm_head.weight"), Error);
  put("model.embed_tokens.weight", other.data(), "");
  put("lm_head.weight", other.data(), "model.embed_tokens.weight");
}

TEST(TrainerFill, TensorsComeOneByOneInAnyOrderBetweenTables) {
  const auto plan = training_plan(DType::BF16, true);
  Trainer trainer(plan);
  trainer.reserve();
  const Loop old(plan.model, DType::F32, 1), loop(plan.model, DType::F32, 2);
  trainer.fill(0, old.tensors);
  for (const auto& tensor : loop.tensors)
    EXPECT_EQ(trainer.put(0, tensor), static_cast<std::size_t>(plan.model.find(tensor.info.name)));
  expect_filled(plan, loop, trainer.source(0));
  trainer.fill(0, old.tensors);
  expect_filled(plan, old, trainer.source(0));

  const auto refused = [&](TrainingTensor tensor) {
    EXPECT_THROW(trainer.put(0, tensor), Error);
    expect_filled(plan, old, trainer.source(0));
  };
  auto tensor = loop.tensors.front();
  tensor.info.shape.push_back(1);
  refused(tensor);
  tensor = loop.tensors.front();
  tensor.info.dtype = DType::F64;
  refused(tensor);
  tensor = loop.tensors.front();
  tensor.info.name = "no.such.weight";
  refused(tensor);
  tensor.info.name = "lm_head.weight";
  refused(tensor);
  EXPECT_THROW(trainer.fill(0, {}), Error) << "nothing at all";
}

/// What is claimed of a region is what is there.
void expect_claimed(const TransferPlan& plan, const Trainer& trainer, std::size_t source_index) {
  SourceDigests held(plan);
  held.begin(trainer.source(source_index).data, {0, plan.model.parameters.size()});
  held.finish();
  const auto& claimed = trainer.claimed(source_index);
  EXPECT_TRUE(claimed.knows_all());
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    for (std::size_t t = 0; t < plan.tp; ++t)
      EXPECT_EQ(claimed.shard(t, p), held.claim().shard(t, p)) << plan.model.parameters[p].info.name << " rank " << t;
  }
  EXPECT_EQ(claimed.model(), held.claim().model());
}

TEST(TrainerFill, IsClaimedAsItGetsThere) {
  for (const auto wire : {DType::BF16, DType::F16, DType::F32}) {
    for (const std::uint64_t tp : {1, 2, 4}) {
      const auto plan = make_plan(training_plan(wire).model, tp, 1);
      Trainer trainer(plan);
      trainer.load(*make_synthetic_source(plan.model, 1), 2);
      trainer.reserve();
      EXPECT_FALSE(trainer.claimed(1).knows({0, 1}));
      expect_claimed(plan, trainer, 0);
      for (const std::size_t region : {0, 1}) {
        const Loop loop(plan.model, region == 0 ? DType::F32 : wire, region);
        trainer.fill(region, loop.tensors);
        expect_claimed(plan, trainer, region);
      }
      const Loop other(plan.model, wire, 9);
      trainer.put(0, other.tensors.at(2));
      expect_claimed(plan, trainer, 0);
    }
  }
}

TEST(TrainerFill, WhatIsRefusedLeavesTheClaim) {
  const auto plan = training_plan(DType::BF16);
  Trainer trainer(plan);
  trainer.reserve();
  const Loop loop(plan.model, DType::F32);
  const auto put = trainer.put(0, loop.tensors.at(1)).value();
  EXPECT_FALSE(trainer.claimed(0).knows_all());
  EXPECT_TRUE(trainer.claimed(0).knows({put, 1}));
  EXPECT_THROW(trainer.fill(0, {}), Error);
  EXPECT_TRUE(trainer.claimed(0).knows({put, 1}));
}

}  // namespace
}  // namespace weightcast
