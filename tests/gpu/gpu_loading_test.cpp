// Weights that are loaded to a GPU, and held against their reference there: the same as on the host.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "harness/error_of.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/trainer/trainer.hpp"
#include "weightcast/verify/reference_check.hpp"

namespace weightcast {
namespace {

using harness::error_of;
using harness::random_bytes;
using ::testing::HasSubstr;

const Placement on_gpu{MemoryKind::cuda, 0};

class GpuLoading : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
  }
};

/// With columns that are cut, heads that are shared and padding; odd sizes, so that little lies at multiples of 16.
Model odd_model(DType dtype) {
  return build_model({.layers = 1,
                      .hidden = 72,
                      .heads = 8,
                      .kv_heads = 2,
                      .head_dim = 9,
                      .intermediate = 88,
                      .vocabulary = 131,
                      .dtype = dtype});
}
/// With more than one block of a reference in some shards.
Model large_model() {
  return build_model({.layers = 1,
                      .hidden = 1024,
                      .heads = 8,
                      .kv_heads = 2,
                      .head_dim = 16,
                      .intermediate = 4096,
                      .vocabulary = 1000});
}

/// A source as a reference: as it is made, or as it is read.
Reference reference_of(const WeightSource& source, bool made) {
  const auto read = [&source](std::size_t p, std::uint64_t offset, std::span<std::byte> to) {
    source.read(p, offset, to);
  };
  return {read, made ? source.generators() : std::span<const WordGenerator>()};
}

/// The same bytes, of which nobody says how they are made.
class ReadOnly final : public WeightSource {
 public:
  explicit ReadOnly(const WeightSource& source) : source_(&source) {}
  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> to) const override {
    source_->read(parameter, offset, to);
  }
  std::string describe() const override { return source_->describe(); }

 private:
  const WeightSource* source_;
};

void expect_equal(const Region& held, const Region& expected) {
  const HostView a(held), b(expected);
  ASSERT_EQ(a.bytes().size(), b.bytes().size());
  ASSERT_EQ(std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()), 0);
}

TEST_F(GpuLoading, TheTrainersWeightsAndTheirClaimAreThoseOfTheHost) {
  for (const auto dtype : {DType::BF16, DType::F16, DType::F32}) {
    for (const std::uint64_t tp : {1, 2, 4}) {
      const auto plan = make_plan(odd_model(dtype), tp, 1);
      const auto source = make_synthetic_source(plan.model, 7 * tp);
      Trainer host(plan), device(plan, on_gpu);
      host.load(*source, 2);
      std::atomic<std::uint64_t> loaded{0};
      const auto count = [&](std::uint64_t bytes) { loaded += bytes; };
      device.load(*source, 2, count);
      EXPECT_EQ(loaded, plan.model.size_bytes());
      device.load(ReadOnly(*source), 3, count);
      EXPECT_EQ(loaded, 2 * plan.model.size_bytes());
      for (const std::size_t region : {0, 1}) {
        expect_equal(device.source(region), host.source(0));
        ASSERT_TRUE(device.claimed(region).knows_all());
        for (std::size_t t = 0; t < tp; ++t) {
          for (std::size_t p = 0; p < plan.model.parameters.size(); ++p)
            ASSERT_EQ(device.claimed(region).shard(t, p), host.claimed(0).shard(t, p)) << "rank " << t << ", " << p;
        }
      }
    }
  }
}

TEST_F(GpuLoading, LoadingCanBeGivenUpWhileTheGpuWorks) {
  const auto plan = make_plan(large_model(), 1, 1);
  const auto source = make_synthetic_source(plan.model, 1);
  Trainer trainer(plan, on_gpu);
  const auto stop = [](std::uint64_t) { fail(ExitCode::deadline, "asked to stop"); };
  EXPECT_EQ(error_of([&] { trainer.load(*source, 2, stop); }).code(), ExitCode::deadline);
  const auto slot = Buffer::allocate(on_gpu, plan.slot_bytes, false, "a test");
  for (const bool made : {true, false}) {
    auto reference = reference_of(*source, made);
    reference.look = [] { fail(ExitCode::deadline, "asked to stop"); };
    EXPECT_EQ(error_of([&] { fill_from_reference(plan, 0, slot.region(), reference, 2); }).code(), ExitCode::deadline);
    EXPECT_EQ(error_of([&] { check_against_reference(plan, 0, slot.region(), reference, 2); }).code(),
              ExitCode::deadline);
  }
  EXPECT_EQ(trainer.load(*source, 2), 0U) << "what was given up is not there";
}

/// A slot on either side, with what does not belong there in its padding.
Buffer slot_of(const TransferPlan& plan, std::size_t tp_rank, const Placement& placement) {
  auto slot = Buffer::allocate(placement, plan.slot_bytes, false, "a test");
  for (const auto& range : plan.ranks[tp_rank].padding)
    write_region(slot.region(), range.offset, random_bytes(range.size_bytes, range.offset));
  return slot;
}

TEST_F(GpuLoading, SlotsAreFilledAsOnTheHost) {
  std::vector<Model> models = {large_model()};
  for (const auto dtype : {DType::BF16, DType::F16, DType::F32}) models.push_back(odd_model(dtype));
  for (const auto& model : models) {
    for (const std::uint64_t tp : {1, 2, 4, 8}) {
      const auto plan = make_plan(model, tp, 1);
      const auto source = make_synthetic_source(model, tp);
      for (std::size_t t = 0; t < tp; ++t) {
        const auto expected = slot_of(plan, t, {});
        fill_from_reference(plan, t, expected.region(), reference_of(*source, true), 2);
        for (const bool made : {true, false}) {
          const auto slot = slot_of(plan, t, on_gpu);
          const auto reference = reference_of(*source, made);
          std::atomic<std::uint64_t> filled{0};
          fill_from_reference(plan, t, slot.region(), reference, 3, [&](std::uint64_t bytes) { filled += bytes; });
          EXPECT_EQ(filled, plan.ranks[t].received_bytes);
          expect_equal(slot.region(), expected.region());
          const auto check = check_against_reference(plan, t, slot.region(), reference, 3);
          EXPECT_TRUE(check.mismatched.empty());
          EXPECT_FALSE(check.first) << *check.first;
        }
      }
    }
  }
}

void flip(const Region& region, std::uint64_t at) {
  std::byte byte{};
  read_region(region, at, {&byte, 1});
  byte ^= std::byte{0x10};
  write_region(region, at, {&byte, 1});
}

/// A flipped bit at every `stride`-th byte of every shard and of the padding, and at the last: found, and described as
/// on the host.
void find_flips(const TransferPlan& plan, std::size_t t, std::uint64_t stride) {
  const auto source = make_synthetic_source(plan.model, 5);
  const auto host = slot_of(plan, t, {}), device = slot_of(plan, t, on_gpu);
  for (const auto& slot : {host.region(), device.region()})
    fill_from_reference(plan, t, slot, reference_of(*source, true), 2);
  const auto expect_found = [&](std::uint64_t at, const std::vector<std::size_t>& mismatched) {
    flip(host.region(), at);
    flip(device.region(), at);
    const auto expected = check_against_reference(plan, t, host.region(), reference_of(*source, true), 2);
    ASSERT_TRUE(expected.first);
    for (const bool made : {true, false}) {
      const auto check = check_against_reference(plan, t, device.region(), reference_of(*source, made), 2);
      ASSERT_EQ(check.mismatched, mismatched) << "byte " << at << " of rank " << t;
      ASSERT_EQ(check.first, expected.first);
    }
    flip(host.region(), at);
    flip(device.region(), at);
  };
  const auto each = [&](std::uint64_t size, auto&& visit) {
    for (std::uint64_t i = 0; i < size; i = i + 1 == size ? size : std::min(i + stride, size - 1)) visit(i);
  };
  for (const auto& shard : plan.ranks[t].shards) {
    each(shard.size_bytes(), [&](std::uint64_t i) {
      expect_found(shard.destination_offset + i / shard.row_bytes * shard.destination_pitch + i % shard.row_bytes,
                   {shard.parameter_index});
    });
  }
  for (const auto& range : plan.ranks[t].padding)
    each(range.size_bytes, [&](std::uint64_t i) { expect_found(range.offset + i, {}); });
}

TEST_F(GpuLoading, ADifferenceIsFoundInEveryPlace) {
  for (const std::uint64_t tp : {1, 4, 8}) {
    for (const auto dtype : {DType::BF16, DType::F32}) {
      const auto plan = make_plan(odd_model(dtype), tp, 1);
      for (std::size_t t = 0; t < tp; ++t) find_flips(plan, t, 577);
    }
  }
  const auto plan = make_plan(large_model(), 2, 1);
  for (const std::size_t t : {0, 1}) find_flips(plan, t, 4'333'333);
}

TEST_F(GpuLoading, TheFirstDifferenceIsDescribedAndAllAreListed) {
  const auto plan = make_plan(large_model(), 2, 1);
  const auto expected = make_synthetic_source(plan.model, 1), others = make_synthetic_source(plan.model, 2);
  const auto host = slot_of(plan, 1, {}), device = slot_of(plan, 1, on_gpu);
  for (const auto& slot : {host.region(), device.region()})
    fill_from_reference(plan, 1, slot, reference_of(*others, true), 2);
  const auto on_host = check_against_reference(plan, 1, host.region(), reference_of(*expected, true), 3);
  ASSERT_EQ(on_host.mismatched.size(), plan.model.parameters.size());
  EXPECT_THAT(*on_host.first, HasSubstr(plan.model.parameters[0].info.name));
  for (const bool made : {true, false}) {
    const auto check = check_against_reference(plan, 1, device.region(), reference_of(*expected, made), 3);
    EXPECT_EQ(check.mismatched, on_host.mismatched);
    EXPECT_EQ(check.first, on_host.first);
  }
}

TEST_F(GpuLoading, AReaderThatFailsIsHeard) {
  const auto plan = make_plan(odd_model(DType::BF16), 2, 1);
  const auto slot = slot_of(plan, 0, on_gpu);
  const Reference broken([](std::size_t p, std::uint64_t, std::span<std::byte>) {
    if (p == 3) fail(ExitCode::bad_data, "the file ends too early");
  });
  EXPECT_EQ(error_of([&] { fill_from_reference(plan, 0, slot.region(), broken, 4); }).code(), ExitCode::bad_data);
  EXPECT_EQ(error_of([&] { check_against_reference(plan, 0, slot.region(), broken, 4); }).code(), ExitCode::bad_data);
}

}  // namespace
}  // namespace weightcast
