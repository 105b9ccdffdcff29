// Engines in fp8 through the C interface: trainers give what they train, and engines hold it rounded, with its scales.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "harness/capi_table.hpp"
#include "harness/quantized_loop.hpp"
#include "harness/training_plan.hpp"
#include "weightcast/capi/weightcast.h"

namespace weightcast {
namespace {

using harness::Table;
using harness::world_rank;
using harness::world_size;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// One trainer rank and one replica of a model whose matrices are blocks for two ranks.
class CapiQuantize : public testing::TestWithParam<Quantization> {
 protected:
  void SetUp() override {
    if (world_size() < 2) GTEST_SKIP() << "needs an engine rank";
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // as weightcast.h asks
    path = fmt::format("{}/quantized_{}_{}.json", testing::TempDir(), getpid(), world_rank());
    std::ofstream(path) << to_config_json(harness::training_config(2, 256, 128, 512, 200));
    plan = make_plan(build_model(load_model_config(path), {.ep = 1, .quantization = GetParam()}),
                     static_cast<std::uint64_t>(world_size()) - 1, 1);
    quantize = name(GetParam());
    scales = harness::are_scales(plan.model);
    options.model = path.c_str();
    options.timeout_s = 20;
    options.quantize = quantize.c_str();
  }
  void TearDown() override {
    wc_trainer_destroy(trainer);
    EXPECT_EQ(wc_engine_destroy(engine), WC_OK) << wc_last_error();
    std::remove(path.c_str());
  }

  bool is_trainer() const { return world_rank() == 0; }
  int create() { return is_trainer() ? wc_trainer_create(&options, &trainer) : wc_engine_create(&options, &engine); }

  void make(std::uint64_t version) {
    masters = harness::finite_masters(plan.model, DType::BF16, 1000 * version);
    sent = harness::as_quantized(plan.model, masters, DType::BF16);
  }
  /// One tensor of the loop, in BF16.
  Table table_of(std::size_t p) {
    Table table;
    const auto& info = plan.model.parameters[p].info;
    table.add(info.name, info.shape, masters[p].data());
    return table;
  }
  Table table() {
    Table table;
    for (std::size_t p = 0; p < masters.size(); ++p) {
      const auto& info = plan.model.parameters[p].info;
      if (!scales[p]) table.add(info.name, info.shape, masters[p].data());
    }
    return table;
  }
  void expect_served(std::uint64_t version) { expect_served(version, static_cast<std::size_t>(world_rank()) - 1); }
  void expect_served(std::uint64_t version, std::size_t tp_rank) {
    const auto digest = digest_of_model(plan.model, harness::digests_of(sent)).hex();
    const auto slot = harness::slot_of(plan, tp_rank, sent);
    wc_pin* pin = nullptr;
    std::uint64_t held = 0;
    ASSERT_EQ(wc_pin_served(engine, &pin), WC_OK) << wc_last_error();
    EXPECT_EQ(wc_pin_version(pin, &held), WC_OK);
    EXPECT_EQ(held, version);
    for (std::size_t i = 0; i < plan.engine_tensors.size(); ++i) {
      wc_tensor tensor = WC_TENSOR_INIT;
      ASSERT_EQ(wc_engine_tensor(engine, pin, i, &tensor), WC_OK);
      const auto& planned = plan.engine_tensors[i];
      EXPECT_EQ(std::memcmp(tensor.data, slot.data() + planned.offset, planned.size_bytes), 0) << planned.name;
    }
    wc_unpin(pin);
    char served[33];
    ASSERT_EQ(wc_engine_digest(engine, served), WC_OK) << wc_last_error();
    EXPECT_EQ(std::string(served), digest);
  }

  TransferPlan plan;
  std::string path, quantize;
  std::vector<bool> scales;
  std::vector<std::vector<std::byte>> masters, sent;
  wc_options options = WC_OPTIONS_INIT;
  wc_trainer* trainer = nullptr;
  wc_engine* engine = nullptr;
  wc_update update = WC_UPDATE_INIT;
};

TEST_P(CapiQuantize, EnginesHoldWhatWasPublishedRounded) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  for (const std::uint64_t version : {1, 2}) {
    make(version);
    if (is_trainer()) {
      auto tensors = table();
      ASSERT_EQ(wc_publish(trainer, version, tensors.view().data(), tensors.view().size(), &update), WC_OK)
          << wc_last_error();
    } else {
      ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
      expect_served(version);
    }
    EXPECT_EQ(update.payload, WC_DENSE);
  }
}

TEST_P(CapiQuantize, ADeltaBringsWhatChangedOfBoth) {
  options.delta_limit = 0.4;
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  make(1);
  for (const std::uint64_t version : {1, 2, 3}) {
    if (version > 1) {  // here and there a little, and the greatest of a row and a block
      for (std::size_t p = 0; p < masters.size(); ++p) {
        if (!scales[p]) masters[p][version * 2] ^= std::byte{0x40};
      }
      masters[static_cast<std::size_t>(plan.model.find("model.layers.0.mlp.down_proj.weight"))][2 * version + 1] =
          static_cast<std::byte>(0x43 + version);
      sent = harness::as_quantized(plan.model, masters, DType::BF16);
    }
    if (is_trainer()) {
      auto tensors = table();
      ASSERT_EQ(wc_publish(trainer, version, tensors.view().data(), tensors.view().size(), &update), WC_OK)
          << wc_last_error();
    } else {
      ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
      expect_served(version);
    }
    EXPECT_EQ(update.payload, version == 1 ? WC_DENSE : WC_DELTA);
  }
}

TEST_P(CapiQuantize, OneByOneTheMatrixIsEnough) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  make(3);
  if (!is_trainer()) {
    ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    return expect_served(3);
  }
  const auto matrix = static_cast<std::size_t>(plan.model.find("model.layers.0.mlp.down_proj.weight"));
  const auto its_scales = scales_parameter(plan.model, matrix).value();
  const auto& info = plan.model.parameters[its_scales].info;
  const auto put_scales = [&] {
    Table table;
    table.add(info.name, info.shape, sent[its_scales].data(), 0, "F32");
    return wc_put(trainer, table.view().data());
  };
  ASSERT_EQ(wc_begin(trainer, 3), WC_OK);
  EXPECT_EQ(wc_commit(trainer, &update), WC_BAD_DATA);
  for (std::size_t p = 0; p < masters.size(); ++p) {
    if (scales[p] || p == matrix) continue;
    ASSERT_EQ(wc_put(trainer, table_of(p).view().data()), WC_OK) << wc_last_error();
  }
  EXPECT_EQ(wc_commit(trainer, &update), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(),
              AllOf(HasSubstr("down_proj.weight\n"), HasSubstr(info.name), Not(HasSubstr("0.mlp.gate"))));
  EXPECT_EQ(wc_put(trainer, table_of(matrix).view().data()), WC_OK) << wc_last_error();
  EXPECT_EQ(put_scales(), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr(info.name), HasSubstr("makes its own scales")));
  EXPECT_EQ(wc_commit(trainer, &update), WC_OK) << wc_last_error();
}

TEST_P(CapiQuantize, ParameterByParameterScalesFollowTheirMatrix) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  for (const std::uint64_t version : {1, 2}) {
    make(version);
    for (std::size_t p = 0; p < masters.size(); ++p) {
      const auto& info = plan.model.parameters[p].info;
      if (is_trainer()) {
        Table table;
        table.add(info.name, info.shape, scales[p] ? nullptr : masters[p].data(), 0, scales[p] ? "F32" : "BF16");
        ASSERT_EQ(wc_update_parameter(trainer, version, table.view().data(), 0, &update), WC_OK) << wc_last_error();
        if (scales[p] && p + 1 < masters.size()) {
          EXPECT_EQ(wc_update_parameter(trainer, version, table.view().data(), 0, &update), WC_BAD_DATA);
          EXPECT_THAT(wc_last_error(), HasSubstr(info.name));
        }
      } else {
        ASSERT_EQ(wc_update_parameter_from_distributed(engine, info.name.c_str(), std::string(name(info.dtype)).c_str(),
                                                       info.shape.data(), info.shape.size(), 0, &update),
                  WC_OK)
            << wc_last_error();
      }
    }
    EXPECT_EQ(update.version, version);
    if (!is_trainer()) expect_served(version);
  }
}

/// Two trainer ranks, each with half the rows of everything, said by the layout or by the ranks themselves.
TEST_P(CapiQuantize, SeveralTrainerRanksSayNothingOfScales) {
  if (world_size() != 3) GTEST_SKIP() << "is for two trainer ranks and an engine";
  plan = make_plan(plan.model, 1, 1, fsdp_layout(plan.model, 2));
  options.trainers = 2;
  const bool trains = world_rank() < 2;
  for (const bool custom : {false, true}) {
    make(custom ? 1 : 2);
    Table mine;
    std::optional<harness::PieceLoop> loop;
    if (trains) {
      loop.emplace(plan, static_cast<std::size_t>(world_rank()), masters, DType::BF16, 3);
      harness::remove_scales(plan.model, loop->tensors);
      for (const auto& tensor : loop->tensors) {
        mine.add(tensor.info.name, tensor.info.shape, const_cast<void*>(tensor.data));
        mine.entries().back().strides = tensor.strides_bytes;
        mine.entries().back().offsets = tensor.offsets;
        mine.entries().back().full_shape = tensor.full_shape;
      }
    }
    const auto tensors = mine.view();
    options.sources = trains && custom ? tensors.data() : nullptr;
    options.source_count = trains && custom ? tensors.size() : 0;
    ASSERT_EQ(trains ? wc_trainer_create(&options, &trainer) : wc_engine_create(&options, &engine), WC_OK)
        << wc_last_error();
    if (trains) {
      ASSERT_EQ(wc_publish(trainer, 1, tensors.data(), tensors.size(), &update), WC_OK) << wc_last_error();
    } else {
      ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
      expect_served(1, 0);
    }
    wc_trainer_destroy(std::exchange(trainer, nullptr));
    ASSERT_EQ(wc_engine_destroy(std::exchange(engine, nullptr)), WC_OK) << wc_last_error();
  }
}

TEST_P(CapiQuantize, SourcesThatCutWhatSharesAScaleAreRefusedByAll) {
  if (world_size() != 3) GTEST_SKIP() << "is for two trainer ranks and an engine";
  options.trainers = 2;
  const bool trains = world_rank() < 2;
  Table mine;
  for (std::size_t p = 0; p < scales.size(); ++p) {
    const auto& info = plan.model.parameters[p].info;
    if (scales[p] || !trains) continue;
    auto shape = info.shape;
    std::vector<std::uint64_t> offsets(shape.size(), 0);
    const bool cut = info.name == "model.layers.1.mlp.down_proj.weight";
    if (!cut && world_rank() == 1) continue;
    if (cut) {  // 64 columns, and the others
      offsets[1] = world_rank() == 0 ? 0 : 64;
      shape[1] = world_rank() == 0 ? 64 : shape[1] - 64;
    }
    mine.add(info.name, shape, nullptr);
    mine.entries().back().offsets = offsets;
    mine.entries().back().full_shape = info.shape;
  }
  const auto tensors = mine.view();
  options.sources = trains ? tensors.data() : nullptr;
  options.source_count = tensors.size();
  EXPECT_EQ(trains ? wc_trainer_create(&options, &trainer) : wc_engine_create(&options, &engine), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr("model.layers.1.mlp.down_proj.weight"), HasSubstr("share a scale"),
                                     Not(HasSubstr("model.layers.0"))));
}

INSTANTIATE_TEST_SUITE_P(Host, CapiQuantize, testing::Values(Quantization::fp8_block, Quantization::fp8_channel),
                         [](const auto& test) { return test.param == Quantization::fp8_block ? "block" : "channel"; });

}  // namespace
}  // namespace weightcast
