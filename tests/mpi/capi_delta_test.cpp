// Deltas through the C interface: what is asked for, what a result says, and what engines hold.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>

#include "harness/capi_table.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/capi/weightcast.h"
#include "weightcast/device/memory.hpp"

namespace weightcast {
namespace {

using harness::Table;
using harness::world_rank;
using harness::world_size;
using testing::HasSubstr;

using Weights = std::vector<std::vector<std::byte>>;

/// Flips the lowest bit of some units of 16 bits of each parameter: how many it were.
std::uint64_t change(Weights& weights, double share, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uint64_t units = 0;
  for (auto& bytes : weights) {
    for (std::size_t at = 0; at < bytes.size(); at += 2) {
      if (static_cast<double>(random() % 1'000'000) >= share * 1e6) continue;
      bytes[at] ^= std::byte{1};
      ++units;
    }
  }
  return units;
}

/// Whoever is not rank 0 is a tensor-parallel rank of the one engine of the model `tiny`.
class CapiDelta : public testing::TestWithParam<MemoryKind> {
 protected:
  void SetUp() override {
    if (world_size() < 2) GTEST_SKIP() << "needs an engine rank";
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // as weightcast.h asks
    if (GetParam() == MemoryKind::cuda && gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
    plan = make_plan(build_model(load_model_config("tiny")), static_cast<std::uint64_t>(world_size()) - 1, 1);
    if (GetParam() == MemoryKind::cuda) placement = {MemoryKind::cuda, world_rank() % gpu::count()};
    options.model = "tiny";
    options.timeout_s = 20;
    options.memory = GetParam() == MemoryKind::cuda ? WC_CUDA : WC_HOST;
    options.device = placement.gpu;
    options.delta_limit = 0.4;
    weights = harness::model_bytes(plan.model, 1);
  }
  void TearDown() override {
    wc_trainer_destroy(trainer);
    EXPECT_EQ(wc_engine_destroy(engine), WC_OK) << wc_last_error();
  }

  bool is_trainer() const { return world_rank() == 0; }
  int create() { return is_trainer() ? wc_trainer_create(&options, &trainer) : wc_engine_create(&options, &engine); }

  /// The table of `weights`, in memory of its own.
  Table& table() {
    memory_.clear();
    table_ = Table(placement);
    for (std::size_t p = 0; p < weights.size(); ++p) {
      const auto& info = plan.model.parameters[p].info;
      memory_.push_back(Buffer::allocate(placement, weights[p].size(), false, "a test"));
      write_region(memory_.back().region(), 0, weights[p]);
      table_.add(info.name, info.shape, memory_.back().region().data);
    }
    return table_;
  }
  /// `weights` go from the trainer to the engines.
  void send(std::uint64_t version) {
    if (is_trainer()) {
      const auto& view = table().view();
      ASSERT_EQ(wc_publish(trainer, version, view.data(), view.size(), &update), WC_OK) << wc_last_error();
    } else {
      ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    }
  }
  /// The engine serves `weights`, and this rank's result says so.
  void expect_served(std::uint64_t version) {
    const auto digest = digest_of_model(plan.model, harness::digests_of(weights)).hex();
    EXPECT_EQ(update.version, version);
    EXPECT_EQ(std::string(update.digest), digest);
    if (is_trainer()) return;
    const auto slot = harness::slot_of(plan, static_cast<std::size_t>(world_rank()) - 1, weights);
    wc_pin* pin = nullptr;
    ASSERT_EQ(wc_pin_served(engine, &pin), WC_OK) << wc_last_error();
    for (std::size_t i = 0; i < plan.engine_tensors.size(); ++i) {
      wc_tensor tensor = WC_TENSOR_INIT;
      ASSERT_EQ(wc_engine_tensor(engine, pin, i, &tensor), WC_OK);
      const auto& planned = plan.engine_tensors[i];
      std::vector<std::byte> held(planned.size_bytes);
      read_region({static_cast<std::byte*>(tensor.data), held.size(), placement.kind, placement.gpu}, 0, held);
      EXPECT_EQ(std::memcmp(held.data(), slot.data() + planned.offset, held.size()), 0) << planned.name;
    }
    wc_unpin(pin);
    char served[33];
    ASSERT_EQ(wc_engine_digest(engine, served), WC_OK) << wc_last_error();
    EXPECT_EQ(std::string(served), digest);
  }
  void expect_delta(std::uint64_t changed) {
    EXPECT_EQ(update.payload, WC_DELTA);
    EXPECT_GE(update.diff_s, 0);
    EXPECT_GE(update.apply_s, 0);
    if (!is_trainer()) return;
    EXPECT_GE(update.changed_elements, changed);  // what all ranks hold goes to each of them
    if (world_size() == 2) {
      EXPECT_EQ(update.changed_elements, changed);
    }
    EXPECT_GE(update.shipped_bytes, 4 * changed);
    EXPECT_LT(update.shipped_bytes, plan.model.size_bytes() / 2);
    EXPECT_GE(update.egress_bytes, update.shipped_bytes);  // whole parts
    EXPECT_LT(update.egress_bytes, plan.model.size_bytes() / 2);
  }
  void expect_dense() {
    EXPECT_EQ(update.payload, WC_DENSE);
    EXPECT_EQ(update.shipped_bytes, 0u);
    EXPECT_EQ(update.changed_elements, 0u);
    if (is_trainer()) {
      EXPECT_EQ(update.egress_bytes, plan.egress_bytes());
    }
  }

  TransferPlan plan;
  Placement placement;
  Weights weights;
  wc_options options = WC_OPTIONS_INIT;
  wc_trainer* trainer = nullptr;
  wc_engine* engine = nullptr;
  wc_update update = WC_UPDATE_INIT;

 private:
  std::vector<Buffer> memory_;
  Table table_;
};

TEST_P(CapiDelta, WhatChangedIsSentAndTheRestIsThere) {
  for (const int slots : {2, 1}) {
    weights = harness::model_bytes(plan.model, 1);
    options.slots = slots;
    ASSERT_EQ(create(), WC_OK) << wc_last_error();
    send(1);
    expect_dense();
    expect_served(1);
    for (std::uint64_t version = 2; version <= 6; ++version) {
      const auto changed = change(weights, version == 4 ? 0 : 0.02, version);
      send(version);
      expect_delta(changed);
      expect_served(version);
    }
    weights = harness::model_bytes(plan.model, 2);  // every byte
    send(7);
    expect_dense();
    expect_served(7);
    const auto changed = change(weights, 0.001, 8);
    send(8);
    expect_delta(changed);
    expect_served(8);
    wc_trainer_destroy(std::exchange(trainer, nullptr));
    ASSERT_EQ(wc_engine_destroy(std::exchange(engine, nullptr)), WC_OK) << wc_last_error();
  }
}

TEST_P(CapiDelta, OneByOneToo) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  for (std::uint64_t version = 1; version <= 4; ++version) {
    const auto changed = version == 1 ? 0 : change(weights, 0.01, version);
    if (is_trainer()) {
      ASSERT_EQ(wc_begin(trainer, version), WC_OK);
      for (const auto& tensor : table().view()) ASSERT_EQ(wc_put(trainer, &tensor), WC_OK) << wc_last_error();
      ASSERT_EQ(wc_commit(trainer, &update), WC_OK) << wc_last_error();
    } else {
      ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    }
    expect_served(version);
    if (version > 1) expect_delta(changed);
  }
}

TEST_P(CapiDelta, ParameterByParameterIsDense) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  for (std::uint64_t version = 1; version <= 2; ++version) {
    change(weights, 0.01, version);
    for (std::size_t p = 0; p < weights.size(); ++p) {
      const auto& info = plan.model.parameters[p].info;
      if (is_trainer()) {
        ASSERT_EQ(wc_update_parameter(trainer, version, &table().view()[p], 0, &update), WC_OK) << wc_last_error();
      } else {
        ASSERT_EQ(wc_update_parameter_from_distributed(engine, info.name.c_str(), "BF16", info.shape.data(),
                                                       info.shape.size(), 0, &update),
                  WC_OK)
            << wc_last_error();
      }
      EXPECT_EQ(update.payload, WC_DENSE);
    }
    expect_served(version);
  }
  const auto changed = change(weights, 0.01, 3);
  send(3);
  expect_served(3);
  if (update.payload == WC_DELTA) expect_delta(changed);
}

TEST_P(CapiDelta, OffUnlessAskedFor) {
  options.delta_limit = 0;
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  for (std::uint64_t version = 1; version <= 3; ++version) {
    change(weights, 0.01, version);
    send(version);
    expect_dense();
    expect_served(version);
  }
}

TEST_P(CapiDelta, ResultsOfEarlierHeadersEndEarlier) {
  options.size = offsetof(wc_options, delta_limit);  // and so do their options
  options.delta_limit = NAN;
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  std::memset(&update, 0x55, sizeof update);
  update.size = offsetof(wc_update, payload);
  send(1);
  expect_served(1);
  EXPECT_EQ(update.size, offsetof(wc_update, payload));
  const auto* const behind = reinterpret_cast<const unsigned char*>(&update) + offsetof(wc_update, payload);
  for (std::size_t i = 0; i < sizeof update - offsetof(wc_update, payload); ++i) ASSERT_EQ(behind[i], 0x55) << i;
  for (const auto size : {offsetof(wc_update, egress_bytes), offsetof(wc_update, shipped_bytes), sizeof update + 8}) {
    update.size = size;
    if (is_trainer()) {
      const auto& view = table().view();
      EXPECT_EQ(wc_publish(trainer, 2, view.data(), view.size(), &update), WC_USAGE);
    } else {
      EXPECT_EQ(wc_receive(engine, 0, &update), WC_USAGE);
    }
    EXPECT_THAT(wc_last_error(), HasSubstr("wc_update has size"));
  }
}

TEST_P(CapiDelta, LimitsThatAreNone) {
  for (const double limit : {-0.1, 1.01, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    options.delta_limit = limit;
    EXPECT_EQ(create(), WC_USAGE) << limit;
    EXPECT_THAT(wc_last_error(), HasSubstr("delta_limit is not between 0")) << limit;
  }
  options.timeout_s = 5;
  options.delta_limit = is_trainer() ? 0.4 : 0.5;
  EXPECT_EQ(create(), WC_CONFIG);
  EXPECT_THAT(wc_last_error(), HasSubstr("delta"));
}

INSTANTIATE_TEST_SUITE_P(Host, CapiDelta, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Gpu, CapiDelta, testing::Values(MemoryKind::cuda));

}  // namespace
}  // namespace weightcast
