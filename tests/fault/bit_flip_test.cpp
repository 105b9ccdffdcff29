// One bit flipped anywhere between the trainer's first look at the weights and COMMIT: refused every time, the old
// version served as before, and the next update succeeds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness/faulty_transport.hpp"
#include "harness/update_rig.hpp"
#include "weightcast/checkpoint/checkpoint.hpp"

namespace weightcast {
namespace {

using testing_harness::Fault;
using testing_harness::injecting;
using testing_harness::RandomWeights;
using testing_harness::UpdateRig;

constexpr int flips = 1000;

struct Case {
  std::string transport;
  MemoryKind memory = MemoryKind::host;
  bool apart = false;  ///< see stand_apart(); and none digests what it copies within one GPU
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.transport << " " << name(c.memory) << (c.apart ? " apart" : "");
}

class BitFlip : public testing::TestWithParam<Case> {};

TEST_P(BitFlip, InWhatArrivesIsRefused) {
  const auto& param = GetParam();
  if (const auto reason = testing_harness::why_not(param.memory, param.transport); !reason.empty())
    GTEST_SKIP() << reason;
  testing_harness::stand_apart(param.apart);
  Fault fault;
  UpdateRig rig({.transport = param.transport, .memory = param.memory}, injecting(fault));
  std::mt19937_64 random(7);
  int refused = 0;
  for (int i = 0; i < flips; ++i) {
    const int rank = 1 + static_cast<int>(random() % rig.plan.tp);
    const auto& plan = rig.plan.ranks[static_cast<std::size_t>(rank) - 1];
    fault = {.kind = Fault::Kind::bit_flip, .ranks = {rank}, .byte = random() % plan.received_bytes};
    for (; fault.byte >= plan.shards[fault.parameter].size_bytes(); ++fault.parameter)
      fault.byte -= plan.shards[fault.parameter].size_bytes();
    fault.bit = static_cast<int>(random() % 8);
    fault.announced = param.apart;
    const auto error = rig.update(0, 2);
    ASSERT_TRUE(error) << "flip " << i << " went unnoticed, on rank " << rank << " in byte " << fault.byte << " of "
                       << rig.plan.model.parameters[fault.parameter].info.name;
    ASSERT_EQ(error->code(), ExitCode::mismatch);
    ASSERT_EQ(error->origin().rank, rank);
    ++refused;
    if (i % 100 == 0) {
      ASSERT_TRUE(rig.serves(1, rig.seed1));
    }
  }
  fault = {};
  EXPECT_EQ(refused, flips);
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  if (rig.trainer) {
    std::printf("%d of %d bit flips in what arrives by %s in %s memory%s refused\n", refused, flips,
                param.transport.c_str(), std::string(name(param.memory)).c_str(), param.apart ? ", apart," : "");
  }
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

INSTANTIATE_TEST_SUITE_P(Host, BitFlip, testing::Values(Case{"mpi"}, Case{"direct"}));
INSTANTIATE_TEST_SUITE_P(Gpu, BitFlip,
                         testing::Values(Case{"direct", MemoryKind::cuda}, Case{"direct", MemoryKind::cuda, true},
                                         Case{"nccl", MemoryKind::cuda, true}));

TEST(BitFlipSource, InTheTrainersWeightsAfterLoadingIsRefused) {
  UpdateRig rig({.transport = "direct"});
  std::mt19937_64 random(8);
  int refused = 0;
  for (int i = 0; i < flips; ++i) {
    const auto p = random() % rig.plan.model.parameters.size();
    const auto offset = rig.plan.source_offset(p) + random() % rig.seed2.bytes(p).size();
    const auto mask = static_cast<std::byte>(1 << random() % 8);
    if (rig.trainer) rig.trainer->source(0).data[offset] ^= mask;
    const auto error = rig.update(0, 2);
    if (rig.trainer) rig.trainer->source(0).data[offset] ^= mask;
    ASSERT_TRUE(error) << "flip " << i << " went unnoticed";
    ASSERT_EQ(error->code(), ExitCode::mismatch);
    ASSERT_EQ(error->origin().rank, 0);
    ++refused;
  }
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  if (rig.trainer) std::printf("%d of %d bit flips in the trainer's weights refused\n", refused, flips);
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

TEST(BitFlipSource, InAnyTrainerRanksPieceNamesThatRank) {
  if (testing_harness::world_size() < 3) GTEST_SKIP() << "needs two trainer ranks";
  int refused = 0, tried = 0;
  for (const auto layout : {LayoutKind::fsdp, LayoutKind::tp, LayoutKind::custom}) {
    UpdateRig rig({.transport = "direct", .trainers = 2, .layout = layout});
    // What a trainer rank sends: a copy that another rank sends is nobody's loss.
    std::vector<Segment> sent;
    for (const auto& rank : rig.plan.ranks)
      sent.insert(sent.end(), rank.schedule.segments.begin(), rank.schedule.segments.end());
    std::mt19937_64 random(10);
    for (int i = 0; i < (flips + 2) / 3; ++i, ++tried) {
      const auto& segment = sent[random() % sent.size()];
      const auto offset =
          segment.source_offset + random() % segment.rows * segment.source_pitch + random() % segment.row_bytes;
      const auto mask = static_cast<std::byte>(1 << random() % 8);
      const bool mine = rig.world.rank() == static_cast<int>(segment.from);
      if (mine) rig.trainer->source(0).data[offset] ^= mask;
      const auto error = rig.update(0, 2);
      if (mine) rig.trainer->source(0).data[offset] ^= mask;
      ASSERT_TRUE(error) << "flip " << i << " went unnoticed";
      ASSERT_EQ(error->code(), ExitCode::mismatch);
      ASSERT_EQ(error->origin().rank, static_cast<int>(segment.from)) << error->what();
      ++refused;
    }
    EXPECT_TRUE(rig.serves(1, rig.seed1));
    ASSERT_FALSE(rig.update(0, 2));
    EXPECT_TRUE(rig.serves(2, rig.seed2));
  }
  if (testing_harness::world_rank() == 0)
    std::printf("%d of %d bit flips in pieces of trainer ranks refused, the rank named\n", refused, tried);
}

TEST(BitFlipSource, InTheTargetFileAfterItsDigestWasTakenIsRefused) {
  UpdateRig rig({.transport = "mpi"});
  const auto& parameters = rig.plan.model.parameters;
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("weightcast-flip-{}", ::getpid());
  SourceClaim taken(rig.plan);
  std::uint64_t data_offset = 0;
  if (rig.trainer) {
    CheckpointContent content;
    for (const auto& rule : parameters) content.tensors.push_back(rule.info);
    content.fill = [&](std::size_t p, std::uint64_t offset, std::span<std::byte> to) { rig.seed2.read(p, offset, to); };
    write_checkpoint(folder.string(), content, 1 << 30, {}, 1);
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto shape = matrix_of(parameters[p].info);
      const auto row_bytes = shape.columns * element_bytes(parameters[p].info.dtype);
      const Piece whole{p, {0, 0, shape.rows, shape.columns}, 0, row_bytes};
      taken.add(Chunk{0, 0, row_bytes * shape.rows, whole}, rig.seed2.bytes(p).data());
      taken.complete(p);
    }
    data_offset = std::filesystem::file_size(folder / "model.safetensors") - rig.plan.model.size_bytes();
  }
  std::mt19937_64 random(9);
  int refused = 0;
  for (int i = 0; i < flips; ++i) {
    const auto offset = random() % rig.plan.model.size_bytes();
    const auto mask = static_cast<char>(1 << random() % 8);
    const auto error = rig.together([&] {
      if (rig.trainer) {
        const auto toggle = [&] {
          std::fstream file(folder / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
          const auto at = static_cast<std::streamoff>(data_offset + offset);
          const auto byte = static_cast<char>(file.seekg(at).get() ^ mask);
          file.seekp(at).put(byte);
        };
        toggle();
        const CheckpointSource source(rig.plan.model, Checkpoint::open(folder.string()));
        const auto memory = rig.trainer->source(0);
        for (std::size_t p = 0; p < parameters.size(); ++p) {
          source.read(p, 0, memory.bytes().subspan(rig.plan.source_offset(p), *parameters[p].info.size_bytes()));
        }
        toggle();
        rig.trainer->group().publish({1, 2, 0, &taken, 0, parameters.size()});
      } else {
        rig.engine->update_weights().throw_if_refused();
      }
    });
    ASSERT_TRUE(error) << "flip " << i << " went unnoticed";
    ASSERT_EQ(error->code(), ExitCode::mismatch);
    ++refused;
  }
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  if (rig.trainer) std::printf("%d of %d bit flips in the target file refused\n", refused, flips);
  if (rig.trainer) std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace weightcast
