#include "weightcast/snapshot/snapshot.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "harness/model_bytes.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;

/// A model that can be cut for `tp`: `tiny` where that divides, else one with a multiple of everything.
Model model_for(std::uint64_t tp, DType dtype) {
  ModelConfig config = load_model_config("tiny");
  if (8 % tp != 0) {
    config = {.family = Family::qwen2,
              .layers = 2,
              .hidden = 24 * tp,
              .heads = 2 * tp,
              .kv_heads = tp,
              .head_dim = 12,
              .intermediate = 10 * tp,
              .vocabulary = 64 * tp - 9,
              .tied_embeddings = true,
              .attention_bias = true};
  }
  config.dtype = dtype;
  return build_model(config);
}

Deadline soon() {
  return Deadline::after(30);
}

class SnapshotTest : public testing::Test {
 protected:
  void SetUp() override {
    world_ = Communicator::duplicate(MPI_COMM_WORLD);
    const auto names =
        world_.all_gather(fmt::format("{}weightcast_snapshot_{}", testing::TempDir(), ::getpid()), soon());
    folder_ = names[0];
    if (world_.rank() == 0) fs::create_directory(folder_);
    world_.barrier(soon());
  }
  void TearDown() override {
    world_.barrier(soon());
    if (world_.rank() == 0) fs::remove_all(folder_);
  }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::size_t files() const { return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), {})); }

  /// Writes through the first `tp` ranks.
  void write(const std::string& name, const Model& model, std::uint64_t tp,
             const std::vector<std::vector<std::byte>>& bytes, std::map<std::string, std::string> settings) const {
    const Communicator replica = world_.split(world_.rank() < static_cast<int>(tp) ? 0 : -1, world_.rank(), soon());
    if (!replica) return;
    const TransferPlan plan = make_plan(model, tp, 1);
    const auto slot = harness::slot_of(plan, static_cast<std::size_t>(replica.rank()), bytes);
    write_snapshot(path(name), replica, plan, slot, {7, harness::digests_of(bytes), std::move(settings)}, soon());
  }

  Communicator world_;
  std::string folder_;
};

std::string behind_user_block(const std::string& path) {
  return read_text_file(path, 1 << 26).substr(4096);
}

void write_alone(const std::string& path, const Model& model, const std::vector<std::vector<std::byte>>& bytes) {
  const auto content = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    std::copy_n(bytes[index].begin() + static_cast<std::ptrdiff_t>(offset), destination.size(), destination.begin());
  };
  EXPECT_EQ(write_snapshot(path, model, content, {1, {}, {}}), harness::digests_of(bytes));
}

TEST_F(SnapshotTest, IsTheSameWhateverTpWroteIt) {
  for (const DType dtype : {DType::BF16, DType::F32}) {
    for (std::uint64_t tp = 1; tp <= static_cast<std::uint64_t>(world_.size()); ++tp) {
      const Model model = model_for(tp, dtype);
      const auto bytes = harness::model_bytes(model, 1);
      write("cut.h5", model, tp, bytes, {{"tp", std::to_string(tp)}});
      if (world_.rank() == 0) {
        write_alone(path("alone.h5"), model, bytes);
        EXPECT_EQ(behind_user_block(path("cut.h5")), behind_user_block(path("alone.h5"))) << "tp " << tp;
        EXPECT_EQ(std::system(fmt::format("h5diff {} {}", path("cut.h5"), path("alone.h5")).c_str()), 0) << "tp " << tp;
        EXPECT_EQ(files(), 2U) << "temporary files are left";
      }
      world_.barrier(soon());
    }
  }
}

/// down_proj has 25 MB here, more than is gathered at a time.
TEST_F(SnapshotTest, GathersALongParameterInSeveralParts) {
  if (world_.size() < 2 || world_.size() > 3) GTEST_SKIP() << "one number of ranks is enough";
  ModelConfig c{
      .layers = 1, .hidden = 1000, .heads = 6, .kv_heads = 6, .head_dim = 8, .intermediate = 12288, .vocabulary = 192};
  c.tied_embeddings = true;
  const Model model = build_model(c);
  const auto bytes = harness::model_bytes(model, 5);
  write("cut.h5", model, static_cast<std::uint64_t>(world_.size()), bytes, {});
  if (world_.rank() != 0) return;
  write_alone(path("alone.h5"), model, bytes);
  EXPECT_TRUE(read_text_file(path("cut.h5"), 1 << 28).substr(4096) ==
              read_text_file(path("alone.h5"), 1 << 28).substr(4096));
}

TEST_F(SnapshotTest, ReadsBackWhatWasWritten) {
  const auto tp = static_cast<std::uint64_t>(world_.size());
  const Model model = model_for(tp, DType::BF16);
  const auto bytes = harness::model_bytes(model, 2);
  write("a.h5", model, tp, bytes, {});
  const Snapshot snapshot = Snapshot::open(path("a.h5"));
  EXPECT_EQ(snapshot.version(), 7U);
  ASSERT_EQ(snapshot.tensors().size(), model.parameters.size());
  for (std::size_t i = 0; i < snapshot.tensors().size(); ++i) {
    const auto index = static_cast<std::size_t>(model.find(snapshot.tensors()[i].name));
    ASSERT_EQ(snapshot.tensors()[i], model.parameters.at(index).info);
    std::vector<std::byte> read(bytes[index].size());
    snapshot.read(i, 0, read);
    EXPECT_EQ(read, bytes[index]) << snapshot.tensors()[i].name;
    EXPECT_EQ(snapshot.claimed_digests()[i], digest_bytes(read, 0));
  }
}

TEST_F(SnapshotTest, ReplacesAnOlderOneAndDiffersFromIt) {
  const auto tp = static_cast<std::uint64_t>(world_.size());
  const Model model = model_for(tp, DType::BF16);
  write("a.h5", model, tp, harness::model_bytes(model, 1), {});
  write("b.h5", model, tp, harness::model_bytes(model, 1), {});
  write("b.h5", model, tp, harness::model_bytes(model, 2), {});
  if (world_.rank() != 0) return;
  EXPECT_NE(std::system(fmt::format("h5diff -q {} {}", path("a.h5"), path("b.h5")).c_str()), 0);
}

TEST_F(SnapshotTest, FailsOnAllRanksAlikeWhereItMayNotWrite) {
  const auto tp = static_cast<std::uint64_t>(world_.size());
  const Model model = model_for(tp, DType::BF16);
  try {
    write("missing/a.h5", model, tp, harness::model_bytes(model, 1), {});
    ADD_FAILURE() << "was written";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::cant_create) << error.what();
    EXPECT_EQ(error.origin().rank, 0);
    EXPECT_EQ(error.reach(), Error::Reach::everybody);
  }
}

TEST_F(SnapshotTest, FindsAFullDiskBeforeWritingAndLeavesNothing) {
  const auto tp = static_cast<std::uint64_t>(world_.size());
  const Model model = model_for(tp, DType::BF16);
  const auto bytes = harness::model_bytes(model, 1);
  struct rlimit before {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {rlim_t{100}, rlim_t{8192}, rlim_t{50'000}}) {
    const struct rlimit small { limit, before.rlim_max };
    if (world_.rank() == 0) ::setrlimit(RLIMIT_FSIZE, &small);
    try {
      write("a.h5", model, tp, bytes, {});
      ADD_FAILURE() << "was written";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::io_error) << error.what();
    }
    ::setrlimit(RLIMIT_FSIZE, &before);
    world_.barrier(soon());
    EXPECT_EQ(files(), 0U) << "with a limit of " << limit;
    world_.barrier(soon());
  }
  std::signal(SIGXFSZ, handler);
  write("a.h5", model, tp, bytes, {});
}

}  // namespace
}  // namespace weightcast
