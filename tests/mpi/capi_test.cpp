// The C interface between processes: both ways to receive, what is refused, and what a failure leaves alone.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstring>

#include "harness/capi_table.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/capi/weightcast.h"
#include "weightcast/device/memory.hpp"

namespace {
bool mute = false;  // what this rank tells others of a stage's outcome gets lost
}

/// In place of MPI's: the library's calls come here, too.
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int rank, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  constexpr int tag_outcome = 9001;  // comm/agree.cpp
  if (!mute || tag != tag_outcome) return PMPI_Isend(data, count, type, rank, tag, comm, request);
  *request = MPI_REQUEST_NULL;
  return MPI_SUCCESS;
}

namespace weightcast {
namespace {

using harness::Table;
using harness::world_rank;
using harness::world_size;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// Where this rank's tensors are.
Placement placement_of(MemoryKind kind) {
  return kind == MemoryKind::cuda ? Placement(kind, world_rank() % gpu::count()) : Placement();
}

/// Trainer and engines of the model `tiny`, all engine ranks one replica, and versions that everybody can make.
class CapiTest : public testing::TestWithParam<MemoryKind> {
 protected:
  void SetUp() override {
    if (world_size() < 2) GTEST_SKIP() << "needs an engine rank";
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // as weightcast.h asks
    plan = make_plan(build_model(load_model_config("tiny")), static_cast<std::uint64_t>(world_size()) - 1, 1);
    if (GetParam() == MemoryKind::cuda && gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
    placement = placement_of(GetParam());
    options.model = "tiny";
    options.timeout_s = 20;
    options.memory = GetParam() == MemoryKind::cuda ? WC_CUDA : WC_HOST;
    options.device = placement.gpu;
  }
  void TearDown() override {
    wc_trainer_destroy(trainer);
    EXPECT_EQ(wc_engine_destroy(engine), WC_OK) << wc_last_error();
  }

  bool is_trainer() const { return world_rank() == 0; }
  std::size_t tp_rank() const { return static_cast<std::size_t>(world_rank()) - 1; }

  int create() { return is_trainer() ? wc_trainer_create(&options, &trainer) : wc_engine_create(&options, &engine); }
  int publish(std::uint64_t version, wc_update* result) {
    const auto bytes = harness::model_bytes(plan.model, version);
    std::vector<Buffer> memory;
    Table table(placement);
    for (std::size_t p = 0; p < bytes.size(); ++p) {
      const auto& info = plan.model.parameters[p].info;
      memory.push_back(Buffer::allocate(placement, bytes[p].size(), false, "a test"));
      write_region(memory.back().region(), 0, bytes[p]);
      table.add(info.name, info.shape, memory.back().region().data);
    }
    return wc_publish(trainer, version, table.view().data(), table.view().size(), result);
  }
  /// The engine's own slots hold exactly this version.
  void expect_served(std::uint64_t version) {
    const auto slot = harness::slot_of(plan, tp_rank(), harness::model_bytes(plan.model, version));
    wc_pin* pin = nullptr;
    std::uint64_t held = 0;
    std::size_t count = 0;
    ASSERT_EQ(wc_pin_served(engine, &pin), WC_OK) << wc_last_error();
    EXPECT_EQ(wc_pin_version(pin, &held), WC_OK);
    EXPECT_EQ(held, version);
    EXPECT_EQ(wc_engine_tensor_count(engine, &count), WC_OK);
    EXPECT_EQ(count, plan.engine_tensors.size());
    for (std::size_t i = 0; i < count; ++i) {
      wc_tensor tensor = WC_TENSOR_INIT;
      ASSERT_EQ(wc_engine_tensor(engine, pin, i, &tensor), WC_OK);
      const auto& planned = plan.engine_tensors[i];
      EXPECT_EQ(tensor.name, planned.name);
      EXPECT_STREQ(tensor.dtype, "BF16");
      EXPECT_EQ(tensor.shape[0], planned.shape.rows);
      std::vector<std::byte> bytes(planned.size_bytes);
      read_region({static_cast<std::byte*>(tensor.data), bytes.size(), placement.kind, placement.gpu}, 0, bytes);
      EXPECT_EQ(std::memcmp(bytes.data(), slot.data() + planned.offset, bytes.size()), 0) << planned.name;
    }
    wc_tensor beyond = WC_TENSOR_INIT;
    EXPECT_EQ(wc_engine_tensor(engine, pin, count, &beyond), WC_USAGE);
    EXPECT_EQ(wc_engine_destroy(engine), WC_BUSY);
    wc_unpin(pin);
  }

  TransferPlan plan;
  Placement placement;
  wc_options options = WC_OPTIONS_INIT;
  wc_trainer* trainer = nullptr;
  wc_engine* engine = nullptr;
  wc_update update = WC_UPDATE_INIT;
};

TEST_P(CapiTest, PublishesIntoTheEnginesOwnMemory) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  std::uint64_t held = 99;
  if (is_trainer()) {
    MPI_Barrier(MPI_COMM_WORLD);
  } else {
    wc_pin* pin = nullptr;
    EXPECT_EQ(wc_pin_served(engine, &pin), WC_BUSY);
    EXPECT_EQ(wc_engine_version(engine, &held), WC_OK);
    EXPECT_EQ(held, 0u);
    EXPECT_EQ(wc_receive(engine, 0, &update), WC_BUSY);
    EXPECT_THAT(wc_last_error(), HasSubstr("has not begun"));
    MPI_Barrier(MPI_COMM_WORLD);
  }
  for (const std::uint64_t version : {1, 2, 7}) {
    ASSERT_EQ(is_trainer() ? publish(version, &update) : wc_receive(engine, WC_FOREVER, &update), WC_OK)
        << wc_last_error();
    EXPECT_EQ(update.version, version);
    EXPECT_EQ(update.closed, 0);
    const auto expected =
        digest_of_model(plan.model, harness::digests_of(harness::model_bytes(plan.model, version))).hex();
    EXPECT_EQ(std::string(update.digest), expected);
    if (is_trainer()) {
      EXPECT_EQ(update.egress_bytes, plan.egress_bytes());
      continue;
    }
    expect_served(version);
    char digest[33];
    ASSERT_EQ(wc_engine_digest(engine, digest), WC_OK) << wc_last_error();
    EXPECT_EQ(std::string(digest), expected);
    EXPECT_EQ(wc_scrub(engine), WC_OK) << wc_last_error();
  }
  if (is_trainer()) {
    EXPECT_EQ(publish(7, &update), WC_CONFIG);
    EXPECT_THAT(wc_last_error(), HasSubstr("version 7"));
    wc_trainer_destroy(std::exchange(trainer, nullptr));
    return;
  }
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK);
    EXPECT_EQ(update.closed, 1);
    EXPECT_EQ(update.version, 0u);
  }
}

TEST_P(CapiTest, AScrubTellsAllRanksWhatHasChangedOnOne) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  if (is_trainer()) {
    ASSERT_EQ(publish(1, nullptr), WC_OK) << wc_last_error();
    return;
  }
  EXPECT_EQ(wc_scrub(engine), WC_BUSY);
  ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
  const auto flip = [&] {
    if (world_rank() != world_size() - 1) return;
    wc_pin* pin = nullptr;
    wc_tensor tensor = WC_TENSOR_INIT;
    ASSERT_EQ(wc_pin_served(engine, &pin), WC_OK) << wc_last_error();
    ASSERT_EQ(wc_engine_tensor(engine, pin, 0, &tensor), WC_OK) << wc_last_error();
    const Region first{static_cast<std::byte*>(tensor.data), 1, placement.kind, placement.gpu};
    std::byte value{};
    read_region(first, 0, {&value, 1});
    value ^= std::byte{1};
    write_region(first, 0, {&value, 1});
    wc_unpin(pin);
  };
  flip();
  EXPECT_EQ(wc_scrub(engine), WC_MISMATCH);
  const auto& name = plan.model.parameters[plan.engine_tensors[0].parameters[0]].info.name;
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr(name), HasSubstr("version 1"), HasSubstr("publish a whole version"),
                                     HasSubstr(fmt::format("rank {}", world_size() - 1))));
  EXPECT_EQ(wc_engine_lost(engine), 0);
  flip();
  EXPECT_EQ(wc_scrub(engine), WC_OK) << wc_last_error();
}

TEST_P(CapiTest, PiecesAreSentWithTheCommitAndNotBefore) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  if (!is_trainer()) {
    ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    return expect_served(3);
  }
  const auto bytes = harness::model_bytes(plan.model, 3);
  const auto& parameters = plan.model.parameters;
  std::vector<std::byte> scratch;
  const auto put = [&](std::size_t p, const char* dtype = "BF16") {
    scratch = bytes[p];
    Table table;
    table.add(parameters[p].info.name, parameters[p].info.shape, scratch.data(), 0, dtype);
    const int status = wc_put(trainer, table.view().data());
    std::fill(scratch.begin(), scratch.end(), std::byte{0xee});  // the caller's to use again
    return status;
  };
  EXPECT_EQ(put(0), WC_CONFIG);
  EXPECT_EQ(wc_commit(trainer, nullptr), WC_CONFIG);
  EXPECT_EQ(wc_begin(trainer, 0), WC_CONFIG);
  ASSERT_EQ(wc_begin(trainer, 2), WC_OK);
  EXPECT_EQ(put(0), WC_OK);
  EXPECT_EQ(wc_abort(trainer), WC_OK);
  ASSERT_EQ(wc_begin(trainer, 3), WC_OK);
  EXPECT_EQ(wc_begin(trainer, 4), WC_BUSY);
  EXPECT_EQ(publish(4, &update), WC_BUSY);
  for (std::size_t p = parameters.size(); p-- > 0;) {
    if (p == 0) continue;
    EXPECT_EQ(put(p), WC_OK) << wc_last_error();
  }
  EXPECT_EQ(put(1, "F64"), WC_BAD_DATA);
  EXPECT_EQ(wc_commit(trainer, &update), WC_BAD_DATA) << "parameter 0 was put for an aborted version only";
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr(parameters[0].info.name), Not(HasSubstr(parameters[1].info.name))));
  EXPECT_EQ(put(0), WC_OK);
  EXPECT_EQ(wc_commit(trainer, &update), WC_OK) << wc_last_error();
  EXPECT_EQ(update.version, 3u);
  EXPECT_GT(update.local_s, 0);
}

TEST_P(CapiTest, TheSeedsVerbsMoveAndShowParameters) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  ASSERT_EQ(is_trainer() ? publish(1, &update) : wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
  const auto bytes = harness::model_bytes(plan.model, 2);
  const auto& parameters = plan.model.parameters;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const auto& info = parameters[p].info;
    if (is_trainer()) {
      auto memory = Buffer::allocate(placement, bytes[p].size(), false, "a test");
      write_region(memory.region(), 0, bytes[p]);
      Table table(placement);
      table.add(info.name, info.shape, memory.region().data);
      ASSERT_EQ(wc_update_parameter(trainer, 2, table.view().data(), 0, &update), WC_OK) << wc_last_error();
    } else {
      ASSERT_EQ(wc_update_parameter_from_distributed(engine, info.name.c_str(), "BF16", info.shape.data(),
                                                     info.shape.size(), 0, &update),
                WC_OK)
          << wc_last_error();
    }
    EXPECT_EQ(update.version, p + 1 == parameters.size() ? 2u : 1u) << "served after " << info.name;
  }
  if (is_trainer()) return;
  expect_served(2);
  for (const auto p : {std::size_t{0}, std::size_t{2}, parameters.size() - 1}) {
    const auto& info = parameters[p].info;
    std::uint64_t version = 0;
    std::size_t count = 0;
    ASSERT_EQ(wc_get_weights_by_parameter_name(engine, info.name.c_str(), 3, nullptr, 0, &count, &version), WC_OK);
    EXPECT_EQ(version, 2u);
    ASSERT_EQ(count, std::min<std::uint64_t>(3, info.shape[0]) * (info.shape.size() > 1 ? info.shape[1] : 1));
    std::vector<float> values(count);
    ASSERT_EQ(wc_get_weights_by_parameter_name(engine, info.name.c_str(), 3, values.data(), count, &count, nullptr),
              WC_OK);
    for (std::size_t i = 0; i < count; ++i) {
      const auto expected = to_float(info.dtype, bytes[p].data() + 2 * i).value();
      EXPECT_TRUE(std::memcmp(&values[i], &expected, sizeof expected) == 0) << info.name << " element " << i;
    }
  }
  std::size_t count = 0;
  EXPECT_EQ(wc_get_weights_by_parameter_name(engine, "nonsense", 3, nullptr, 0, &count, nullptr), WC_USAGE);
}

TEST_P(CapiTest, AParameterThatIsNotAsExpectedIsRefusedByAll) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  const auto& info = plan.model.parameters[0].info;
  const auto bytes = harness::model_bytes(plan.model, 1);
  if (is_trainer()) {
    auto memory = Buffer::allocate(placement, bytes[0].size(), false, "a test");
    write_region(memory.region(), 0, bytes[0]);
    Table table(placement);
    table.add(info.name, info.shape, memory.region().data);
    EXPECT_EQ(wc_update_parameter(trainer, 1, table.view().data(), 0, &update), WC_CONFIG);
  } else {
    EXPECT_EQ(wc_update_parameter_from_distributed(engine, info.name.c_str(), "F32", info.shape.data(),
                                                   info.shape.size(), 0, &update),
              WC_CONFIG);
    EXPECT_EQ(wc_update_parameter_from_distributed(engine, nullptr, "F32", nullptr, 0, 0, &update), WC_USAGE);
  }
  EXPECT_EQ(is_trainer() ? publish(1, &update) : wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
}

TEST_P(CapiTest, ATrainersTableThatDoesNotFitIsItsOwnAffair) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  if (!is_trainer()) {
    ASSERT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    return expect_served(1);
  }
  const auto bytes = harness::model_bytes(plan.model, 1);
  Table table;
  for (std::size_t p = 0; p < bytes.size(); ++p) {
    const auto& info = plan.model.parameters[p].info;
    table.add(info.name, info.shape, const_cast<std::byte*>(bytes[p].data()));
  }
  const auto refused = [&](const Table::Entry& first) {
    table.entries()[0] = first;
    return wc_publish(trainer, 1, table.view().data(), table.view().size(), &update);
  };
  const auto good = table.entries()[0];
  EXPECT_EQ(refused({good.name, "BF16", {3, 5}, good.data, 0}), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), HasSubstr(good.name));
  EXPECT_EQ(refused({"no.such.weight", "BF16", good.shape, good.data, 0}), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr(good.name + " is missing"), HasSubstr("no.such.weight")));
  EXPECT_EQ(refused({good.name, "bf16", good.shape, good.data, 0}), WC_USAGE);
  EXPECT_THAT(wc_last_error(), HasSubstr("bf16"));
  EXPECT_EQ(refused({good.name, "BF16", good.shape, good.data, 2 * good.shape[1] - 2}), WC_USAGE);
  EXPECT_THAT(wc_last_error(), HasSubstr("apart"));
  EXPECT_EQ(refused({good.name, "BF16", good.shape, good.data, 1ull << 62}), WC_USAGE);
  EXPECT_THAT(wc_last_error(), HasSubstr("address space"));
  EXPECT_EQ(refused({good.name, "BF16", good.shape, good.data, 0, {INT64_MIN, 2}}), WC_USAGE);
  EXPECT_THAT(wc_last_error(), HasSubstr("address space"));
  EXPECT_EQ(refused({good.name, "BF16", good.shape, nullptr, 0}), WC_USAGE);
  EXPECT_THAT(wc_last_error(), HasSubstr(good.name + " has no data"));
  EXPECT_EQ(refused({good.name, "BF16", good.shape, good.data, 0, {2, 1}}), WC_BAD_DATA);
  EXPECT_THAT(wc_last_error(), HasSubstr(good.name + " is not aligned"));
  EXPECT_EQ(publish(1, &update), WC_OK) << wc_last_error();
}

TEST_P(CapiTest, OptionsOfEarlierHeadersEndEarlier) {
  for (const auto size :
       {offsetof(wc_options, destinations), offsetof(wc_options, trainers), offsetof(wc_options, delta_limit)}) {
    options.size = size;
    options.delta_limit = 99;
    options.trainers = size > offsetof(wc_options, trainers) ? 1 : 99;  // behind the end
    ASSERT_EQ(create(), WC_OK) << wc_last_error();
    ASSERT_EQ(is_trainer() ? publish(1, &update) : wc_receive(engine, WC_FOREVER, &update), WC_OK) << wc_last_error();
    wc_trainer_destroy(std::exchange(trainer, nullptr));
    EXPECT_EQ(wc_engine_destroy(std::exchange(engine, nullptr)), WC_OK) << wc_last_error();
  }
  options.size = sizeof(wc_options) - 1;
  EXPECT_EQ(create(), WC_USAGE);
}

TEST_P(CapiTest, RanksThatDoNotAgreeFormNoGroup) {
  options.timeout_s = 5;
  if (world_rank() == 1) options.method = "broadcast";
  EXPECT_EQ(create(), WC_CONFIG);
  EXPECT_THAT(wc_last_error(), HasSubstr("method"));
  options.method = nullptr;
  options.tp = 64;
  EXPECT_EQ(create(), WC_CONFIG);
  EXPECT_THAT(wc_last_error(), HasSubstr("tp 64"));
  options.tp = 0;
  if (is_trainer()) options.model = "/no/such/folder";
  EXPECT_EQ(create(), WC_NO_INPUT);
  EXPECT_THAT(wc_last_error(), AllOf(HasSubstr("rank 0"), HasSubstr("/no/such/folder")));
  options.model = "tiny";
  EXPECT_EQ(wc_engine_create(&options, &engine), WC_CONFIG);
  EXPECT_THAT(wc_last_error(), HasSubstr("rank 0, which is the trainer's"));
  options.comm_name = "moon";
  EXPECT_EQ(create(), WC_USAGE);
  options.comm_name = nullptr;
  options.comm = 123456;
  EXPECT_EQ(create(), WC_USAGE);
  EXPECT_EQ(trainer, nullptr);
  EXPECT_EQ(engine, nullptr);
}

TEST_P(CapiTest, AnEngineThatLeavesRefusesWhatIsPublished) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  if (is_trainer()) {
    EXPECT_EQ(publish(1, &update), WC_UNAVAILABLE);
    EXPECT_THAT(wc_last_error(), HasSubstr("left the group"));
    EXPECT_FALSE(wc_trainer_lost(trainer));
  } else if (tp_rank() == 0) {
    EXPECT_EQ(wc_engine_destroy(std::exchange(engine, nullptr)), WC_OK) << wc_last_error();
  } else {
    EXPECT_EQ(wc_receive(engine, WC_FOREVER, &update), WC_UNAVAILABLE);
  }
}

/// Engines with tensors of their own: every third parameter's rows are padded, attention is fused.
class CapiDestinationsTest : public CapiTest {
 protected:
  void SetUp() override {
    CapiTest::SetUp();
    if (IsSkipped() || is_trainer()) return;
    options.slots = 1;
    table = Table(placement);
    for (const auto& tensor : plan.engine_tensors) {
      const bool fused = tensor.parameters.size() == 3;  // qkv_proj
      if (fused) add(tensor.name, {tensor.shape.rows, tensor.shape.columns}, tensor.offset, false);
      for (const auto p : tensor.parameters) {
        const auto& rule = plan.model.parameters[p];
        const auto part = shard_of(rule, plan.tp, tp_rank());
        std::vector<std::uint64_t> shape{part.rows};
        if (rule.info.shape.size() == 2) shape.push_back(part.columns);
        if (!fused) add(rule.info.name, shape, plan.ranks[tp_rank()].shards[p].destination_offset, p % 3 == 1);
      }
    }
  }

  void add(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint64_t offset, bool padded) {
    const auto row_bytes = 2 * (shape.size() == 2 ? shape[1] : 1), pitch = padded ? row_bytes + 6 : row_bytes;
    memory_.push_back(Buffer::allocate(placement, shape[0] * pitch, false, "a test"));
    const auto region = memory_.back().region();
    write_region(region, 0, std::vector<std::byte>(region.size_bytes, std::byte{0x77}));
    table.add(name, shape, region.data, padded ? pitch : 0);
    offsets_.push_back(offset);
  }

  int receive() {
    const auto& view = table.view();
    return wc_receive_into(engine, WC_FOREVER, view.data(), view.size(), &update);
  }

  /// The caller's tensors hold exactly this version, and nothing is written between their rows; 0: nothing at all.
  void expect_held(std::uint64_t version) {
    std::uint64_t claimed = 99;
    EXPECT_EQ(wc_engine_version(engine, &claimed), WC_OK);
    EXPECT_EQ(claimed, version);
    const auto slot = harness::slot_of(plan, tp_rank(), harness::model_bytes(plan.model, version));
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      const auto& shape = table.entries()[i].shape;
      std::vector<std::byte> held(memory_[i].region().size_bytes), expected(held.size(), std::byte{0x77});
      read_region(memory_[i].region(), 0, held);
      const auto row_bytes = 2 * (shape.size() == 2 ? shape[1] : 1), pitch = held.size() / shape[0];
      for (std::uint64_t row = 0; row < shape[0] && version != 0; ++row)
        std::memcpy(expected.data() + row * pitch, slot.data() + offsets_[i] + row * row_bytes, row_bytes);
      EXPECT_TRUE(held == expected) << table.entries()[i].name;
    }
  }

  Table table;

 private:
  std::vector<Buffer> memory_;
  std::vector<std::uint64_t> offsets_;
};

TEST_P(CapiDestinationsTest, ReceivesIntoTensorsOfTheCaller) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  for (const std::uint64_t version : {1, 2, 3}) {
    ASSERT_EQ(is_trainer() ? publish(version, &update) : receive(), WC_OK) << wc_last_error();
    EXPECT_EQ(update.version, version);
    if (!is_trainer()) expect_held(version);
  }
}

TEST_P(CapiDestinationsTest, AWrongTableIsRefusedByAllWithEveryDifference) {
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  ASSERT_EQ(is_trainer() ? publish(1, &update) : receive(), WC_OK) << wc_last_error();
  auto good = table.entries();
  const bool guilty = world_rank() == world_size() - 1;
  if (guilty) {
    auto& entries = table.entries();
    const auto find = [&](std::string_view name) {
      return std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry.name == name; });
    };
    find("model.layers.0.self_attn.qkv_proj.weight")->shape[0] += 1;
    find("model.layers.0.mlp.down_proj.weight")->dtype = "F16";
    auto& strided = *find("model.layers.1.mlp.down_proj.weight");
    strided.strides = {0, 2};
    strided.pitch = 0;
    find("model.layers.2.mlp.down_proj.weight")->data = find("model.layers.2.mlp.up_proj.weight")->data;
    find("model.layers.2.self_attn.o_proj.weight")->name = "no.such.weight";
    find("model.norm.weight")->data = static_cast<std::byte*>(find("model.norm.weight")->data) + 1;
    entries.push_back(*find("model.layers.1.input_layernorm.weight"));
  }
  ASSERT_EQ(is_trainer() ? publish(2, &update) : receive(), WC_CONFIG);
  EXPECT_THAT(std::string(wc_last_error()),
              AllOf(HasSubstr("model.layers.0.self_attn.qkv_proj.weight is BF16 ["),
                    HasSubstr("but this rank holds BF16 ["), HasSubstr("model.layers.0.mlp.down_proj.weight is F16 ["),
                    HasSubstr("model.layers.1.mlp.down_proj.weight has elements that share memory"),
                    HasSubstr("overlaps another tensor"), HasSubstr("no.such.weight: the model has neither"),
                    HasSubstr("model.norm.weight is not aligned"),
                    HasSubstr("model.layers.1.input_layernorm.weight is given twice")));
  EXPECT_THAT(wc_last_error(), HasSubstr("model.layers.2.self_attn.o_proj.weight is missing"));
  EXPECT_THAT(wc_last_error(), HasSubstr(fmt::format("tp rank {}", world_size() - 2)));
  table.entries() = good;
  if (!is_trainer()) expect_held(1);
  ASSERT_EQ(is_trainer() ? publish(2, &update) : receive(), WC_OK) << wc_last_error();
  if (!is_trainer()) expect_held(2);
}

TEST_P(CapiDestinationsTest, AFailedUpdateLeavesTheTensorsAlone) {
  options.timeout_s = 0.5;
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  ASSERT_EQ(is_trainer() ? publish(1, &update) : receive(), WC_OK) << wc_last_error();
  // Somebody reads the only slot of one rank, so that it cannot be overwritten in time.
  wc_pin* pin = nullptr;
  if (world_rank() == 1) {
    ASSERT_EQ(wc_pin_served(engine, &pin), WC_OK) << wc_last_error();
  }
  EXPECT_EQ(is_trainer() ? publish(2, &update) : receive(), WC_DEADLINE);
  EXPECT_THAT(wc_last_error(), HasSubstr("still read"));
  EXPECT_FALSE(wc_engine_lost(engine) || wc_trainer_lost(trainer));
  if (!is_trainer()) expect_held(1);
  wc_unpin(pin);
  ASSERT_EQ(is_trainer() ? publish(2, &update) : receive(), WC_OK) << wc_last_error();
  if (!is_trainer()) expect_held(2);
}

TEST_P(CapiDestinationsTest, AnEngineThatIsBusyEndsTheOfferAndNothingElse) {
  options.timeout_s = 0.3;
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  const bool busy = world_rank() == world_size() - 1;
  for (int offer = 0; offer < 3; ++offer) {
    if (busy) break;
    EXPECT_EQ(is_trainer() ? publish(1, &update) : wc_receive(engine, 0.5, &update), WC_BUSY);
    if (is_trainer()) {
      EXPECT_THAT(wc_last_error(), HasSubstr(fmt::format("rank {} did not answer the offer", world_size() - 1)));
      EXPECT_THAT(wc_last_error(), HasSubstr("timeout_s"));
    }
    EXPECT_FALSE(wc_engine_lost(engine) || wc_trainer_lost(trainer));
  }
  MPI_Barrier(MPI_COMM_WORLD);
  // The engine that slept through three offers finds them withdrawn, and takes the fourth.
  ASSERT_EQ(is_trainer() ? publish(2, &update) : receive(), WC_OK) << wc_last_error();
  EXPECT_EQ(update.version, 2u);
  if (!is_trainer()) expect_held(2);
}

TEST_P(CapiDestinationsTest, ALostRankIsReportedByEveryCallFromThenOn) {
  if (world_size() == 2) GTEST_SKIP() << "needs a rank that neither publishes nor gets lost";
  options.timeout_s = 0.5;
  ASSERT_EQ(create(), WC_OK) << wc_last_error();
  ASSERT_EQ(is_trainer() ? publish(1, &update) : receive(), WC_OK) << wc_last_error();
  // The last rank takes the offer, and then says no more.
  mute = world_rank() == world_size() - 1;
  EXPECT_EQ(is_trainer() ? publish(2, &update) : receive(), WC_DEADLINE);
  const auto missing = mute ? 0 : world_size() - 1;  // it waits in vain for rank 0's verdict
  EXPECT_THAT(wc_last_error(), HasSubstr(fmt::format("rank {} did not answer", missing)));
  EXPECT_TRUE(wc_engine_lost(engine) || wc_trainer_lost(trainer));
  EXPECT_EQ(is_trainer() ? publish(3, &update) : receive(), WC_DEADLINE);
  EXPECT_THAT(wc_last_error(), HasSubstr("has lost a rank"));
  if (!is_trainer()) expect_held(1);
  mute = false;
  MPI_Barrier(MPI_COMM_WORLD);
  if (world_rank() == world_size() - 1) engine = nullptr;  // who is lost does not clean up
}

INSTANTIATE_TEST_SUITE_P(Host, CapiTest, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Host, CapiDestinationsTest, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Gpu, CapiTest, testing::Values(MemoryKind::cuda));
INSTANTIATE_TEST_SUITE_P(Gpu, CapiDestinationsTest, testing::Values(MemoryKind::cuda));

}  // namespace
}  // namespace weightcast
