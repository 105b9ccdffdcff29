// The C interface with several trainer ranks: what each has gets to the engines, and what does not fit is refused by
// name on all ranks, before anything moves.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstring>

#include "harness/capi_table.hpp"
#include "harness/piece_loop.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast {
namespace {

using harness::Table;
using harness::world_rank;
using harness::world_size;
using testing::AllOf;
using testing::HasSubstr;

/// Trainer ranks and one engine of the model `tiny`: 2 and 1 of three ranks, 3 and 2 of five.
class CapiPiecesTest : public testing::TestWithParam<MemoryKind> {
 protected:
  void SetUp() override {
    const int size = world_size();
    if (size < 3) GTEST_SKIP() << "needs two trainer ranks and an engine rank";
    if (GetParam() == MemoryKind::cuda && gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    tp = size == 3 ? 1 : 2;
    trainers = static_cast<std::size_t>(size) - tp;
    if (GetParam() == MemoryKind::cuda) placement = {MemoryKind::cuda, rank % gpu::count()};
    options.model = "tiny";
    options.timeout_s = 20;
    options.memory = GetParam() == MemoryKind::cuda ? WC_CUDA : WC_HOST;
    options.device = placement.gpu;
    options.trainers = trainers;
  }
  void TearDown() override {
    wc_trainer_destroy(trainer);
    EXPECT_EQ(wc_engine_destroy(engine), WC_OK) << wc_last_error();
  }

  bool is_trainer() const { return static_cast<std::size_t>(rank) < trainers; }
  int create() { return is_trainer() ? wc_trainer_create(&options, &trainer) : wc_engine_create(&options, &engine); }
  int create_custom(const std::vector<HeldRectangle>& rectangles) {
    Table sources(placement);
    for (const auto& [from, parameter, slice] : rectangles) {
      if (static_cast<int>(from) == rank) add(sources, parameter, slice, nullptr);
    }
    const auto view = sources.view();
    if (is_trainer()) {
      options.sources = view.empty() ? &nothing : view.data();
      options.source_count = view.size();
    }
    const auto status = create();
    options.sources = nullptr;
    options.source_count = 0;
    return status;
  }

  void add(Table& table, std::size_t parameter, const Slice& slice, void* data) const {
    const auto& info = model.parameters[parameter].info;
    const bool vector = info.shape.size() == 1;
    table.add(info.name, vector ? std::vector{slice.rows} : std::vector{slice.rows, slice.columns}, data);
    auto& entry = table.entries().back();
    entry.offsets = vector ? std::vector{slice.row} : std::vector{slice.row, slice.column};
    entry.full_shape = info.shape;
  }

  /// This rank's pieces of a version under a layout, and their memory.
  struct Pieces {
    Table table;
    std::vector<Buffer> memory;
  };
  Pieces pieces_of(const SourceLayout& layout, std::uint64_t version) const {
    Pieces result{Table(placement), {}};
    const auto bytes = harness::model_bytes(model, version);
    for (const auto& piece : layout.ranks[static_cast<std::size_t>(rank)].pieces) {
      const auto part = harness::cut(model.parameters[piece.parameter_index].info, bytes[piece.parameter_index],
                                     piece.slice, 2, 2 * piece.slice.columns);
      result.memory.push_back(Buffer::allocate(placement, part.size(), false, "a test"));
      write_region(result.memory.back().region(), 0, part);
      add(result.table, piece.parameter_index, piece.slice, result.memory.back().region().data);
    }
    return result;
  }
  int publish(const SourceLayout& layout, std::uint64_t version) {
    auto pieces = pieces_of(layout, version);
    const auto& view = pieces.table.view();
    return wc_publish(trainer, version, view.data(), view.size(), &update);
  }
  int update_both(const SourceLayout& layout, std::uint64_t version) {
    return is_trainer() ? publish(layout, version) : wc_receive(engine, WC_FOREVER, &update);
  }

  void expect_served(std::uint64_t version) {
    const auto bytes = harness::model_bytes(model, version);
    EXPECT_EQ(std::string(update.digest), digest_of_model(model, harness::digests_of(bytes)).hex());
    if (is_trainer()) return;
    const auto plan = make_plan(model, tp, 1);
    const auto slot = harness::slot_of(plan, static_cast<std::size_t>(rank) - trainers, bytes);
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
  }

  /// Rows, columns, and both; what several have; one rank that has nothing where there are three.
  std::vector<HeldRectangle> ragged() const {
    std::vector<HeldRectangle> rectangles;
    for (std::size_t p = 0; p < model.parameters.size(); ++p) {
      const auto [rows, columns] = matrix_of(model.parameters[p].info);
      if (p % 3 == 0 || columns == 1) {
        rectangles.push_back({0, p, {0, 0, rows / 5, columns}});
        rectangles.push_back({1, p, {rows / 5, 0, rows - rows / 5, columns}});
      } else if (p % 3 == 1) {
        rectangles.push_back({1, p, {0, 0, rows, columns / 3}});
        rectangles.push_back({0, p, {0, columns / 3, rows, columns - columns / 3}});
      } else {
        rectangles.push_back({0, p, {0, 0, rows, columns}});
        rectangles.push_back({1, p, {0, 0, rows, columns}});
      }
    }
    return rectangles;
  }

  const int rank = world_rank();
  const Model model = build_model(load_model_config("tiny"));
  std::uint64_t tp = 1;
  std::size_t trainers = 1;
  Placement placement;
  wc_options options = WC_OPTIONS_INIT;
  const wc_tensor nothing = WC_TENSOR_INIT;
  wc_trainer* trainer = nullptr;
  wc_engine* engine = nullptr;
  wc_update update = WC_UPDATE_INIT;
};

TEST_P(CapiPiecesTest, LayoutsByNameArePublished) {
  for (const auto kind : {LayoutKind::fsdp, LayoutKind::whole, LayoutKind::tp}) {
    if (kind == LayoutKind::tp && trainers == 3) continue;  // `tiny` cannot be cut so
    const auto layout = make_layout(kind, model, trainers);
    const bool named = is_trainer() && kind != LayoutKind::fsdp;  // which is the default; engines learn it
    options.source_layout = named ? name(kind).data() : nullptr;
    ASSERT_EQ(create(), WC_OK) << wc_last_error();
    for (const std::uint64_t version : {1, 2, 5}) {
      ASSERT_EQ(update_both(layout, version), WC_OK) << wc_last_error();
      EXPECT_EQ(update.version, version);
      expect_served(version);
      if (is_trainer()) {
        const auto plan = make_plan(model, tp, 1, layout);
        EXPECT_EQ(update.egress_bytes, plan.egress_bytes_of(static_cast<std::size_t>(rank)));
      }
    }
    wc_trainer_destroy(std::exchange(trainer, nullptr));
    EXPECT_EQ(wc_engine_destroy(std::exchange(engine, nullptr)), WC_OK) << wc_last_error();
  }
}

TEST_P(CapiPiecesTest, AnyRectanglesArePublished) {
  const auto layout = custom_layout(model, trainers, ragged());
  ASSERT_EQ(create_custom(ragged()), WC_OK) << wc_last_error();
  ASSERT_EQ(update_both(layout, 1), WC_OK) << wc_last_error();
  expect_served(1);
  if (!is_trainer()) {
    ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    return expect_served(2);
  }
  // One by one; a rank that has not all says so on all.
  auto pieces = pieces_of(layout, 2);
  const auto view = pieces.table.view();
  ASSERT_EQ(wc_begin(trainer, 2), WC_OK);
  for (std::size_t i = view.size(); i-- > 1;) ASSERT_EQ(wc_put(trainer, &view[i]), WC_OK) << wc_last_error();
  EXPECT_EQ(wc_commit(trainer, &update), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr("rank 0"), HasSubstr("model.embed_tokens.weight[0:40, :]")));
  if (!view.empty()) {
    ASSERT_EQ(wc_put(trainer, view.data()), WC_OK) << wc_last_error();
  }
  ASSERT_EQ(wc_commit(trainer, &update), WC_OK) << wc_last_error();
  expect_served(2);
}

TEST_P(CapiPiecesTest, ParametersAreSentInPieces) {
  const auto layout = fsdp_layout(model, trainers);
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  auto pieces = is_trainer() ? pieces_of(layout, 1) : Pieces{Table(), {}};
  const auto view = pieces.table.view();
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto& info = model.parameters[p].info;
    if (is_trainer()) {
      ASSERT_EQ(view[p].name, info.name);
      ASSERT_EQ(wc_update_parameter(trainer, 1, &view[p], 0, &update), WC_OK) << wc_last_error();
    } else {
      ASSERT_EQ(wc_update_parameter_from_distributed(engine, info.name.c_str(), "BF16", info.shape.data(),
                                                     info.shape.size(), 0, &update),
                WC_OK)
          << wc_last_error();
    }
  }
  EXPECT_EQ(update.version, 1U);
  expect_served(1);
}

TEST_P(CapiPiecesTest, WhatNobodyHasOrSeveralHaveDifferentlyIsNamedOnAllRanks) {
  auto rectangles = ragged();
  rectangles.erase(rectangles.begin() + 1);  // most of the embedding
  rectangles[3].slice.rows -= 1;             // a row of what both had
  EXPECT_EQ(create_custom(rectangles), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(),
              AllOf(HasSubstr("model.embed_tokens.weight: no trainer rank has 10240 of its 12800 elements"),
                    HasSubstr(model.parameters[2].info.name + ": trainer rank")));
  rectangles = ragged();
  rectangles.push_back(rectangles.front());
  EXPECT_EQ(create_custom(rectangles), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), HasSubstr("model.embed_tokens.weight: trainer rank 0 has rows [0, 40) x columns [0, 64) "
                                         "twice"));
  // What one of them cannot have.
  Table table(placement);
  if (rank == 1) {
    table.add("model.norm.weight", {20}, nullptr);
    table.entries().back().offsets = {50};
    table.entries().back().full_shape = {64};
    table.add("no.such.weight", {20}, nullptr);
  }
  const auto view = table.view();
  if (is_trainer()) options.sources = view.empty() ? &nothing : view.data();
  options.source_count = view.size();
  EXPECT_EQ(create(), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr("rank 1"),
                                     HasSubstr("model.norm.weight is BF16 [20] at [50] of [64], which is no part of"),
                                     HasSubstr("no.such.weight is no parameter")));
}

TEST_P(CapiPiecesTest, RanksThatDoNotAgreeFormNoGroup) {
  options.timeout_s = 5;
  if (rank == 1) options.source_layout = "whole";
  EXPECT_EQ(create(), WC_CONFIG);
  EXPECT_THAT(wc_last_error(), HasSubstr("rank 1"));
  EXPECT_THAT(wc_last_error(), HasSubstr("the source layout is whole here and fsdp on rank 0"));
  options.source_layout = nullptr;
  options.tp = 1;
  options.dp = tp;
  if (!is_trainer()) options.trainers = trainers - 1;
  if (!is_trainer()) options.dp += 1;
  EXPECT_EQ(create(), WC_CONFIG);
  EXPECT_THAT(wc_last_error(),
              HasSubstr(fmt::format("options.trainers is {} here and {} on rank 0", trainers - 1, trainers)));
  options.trainers = trainers;
  options.tp = options.dp = 0;
  EXPECT_EQ(wc_engine_create(&options, &engine), WC_CONFIG);
  EXPECT_THAT(wc_last_error(), HasSubstr("wc_engine_create() on rank 0, which is the trainer's"));
  options.source_layout = "megatron";
  if (is_trainer()) {
    EXPECT_EQ(create(), WC_USAGE);
    EXPECT_THAT(wc_last_error(), HasSubstr("megatron"));
  } else {
    EXPECT_EQ(create(), WC_USAGE) << "refused by the trainer ranks";
  }
  EXPECT_EQ(trainer, nullptr);
  EXPECT_EQ(engine, nullptr);
}

TEST_P(CapiPiecesTest, WhatOneTrainerRankGivesWrongIsRefusedByAllOfThemAndEnginesNoticeNothing) {
  const auto layout = fsdp_layout(model, trainers);
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  if (is_trainer()) {
    auto pieces = pieces_of(layout, 1);
    auto& first = pieces.table.entries().front();
    const bool guilty = static_cast<std::size_t>(rank) + 1 == trainers;
    const auto refused = [&](int code, const std::string& text) {
      const auto& view = pieces.table.view();
      EXPECT_EQ(wc_publish(trainer, 1, view.data(), view.size(), &update), code);
      EXPECT_THAT(wc_last_error(), AllOf(HasSubstr(fmt::format("rank {}", trainers - 1)), HasSubstr(text)));
      EXPECT_FALSE(wc_trainer_lost(trainer));
    };
    if (guilty) first.offsets[0] -= 1;
    refused(WC_BAD_DATA, "expected model.embed_tokens.weight[");
    if (guilty) first.offsets.clear();
    refused(WC_USAGE, "offsets or a full shape, but not both");
    if (guilty) pieces.table.entries().clear();
    refused(WC_BAD_DATA, "30 differences\n  model.embed_tokens.weight[");
  }
  ASSERT_EQ(update_both(layout, 1), WC_OK) << wc_last_error();
  expect_served(1);
}

INSTANTIATE_TEST_SUITE_P(Host, CapiPiecesTest, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Gpu, CapiPiecesTest, testing::Values(MemoryKind::cuda));

}  // namespace
}  // namespace weightcast
