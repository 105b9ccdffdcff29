// One bit flipped anywhere between the trainer's first look at the weights and COMMIT: refused every time, the old
// version served as before, and the next update succeeds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness/update_rig.hpp"
#include "weightcast/checkpoint/checkpoint.hpp"

namespace weightcast {
namespace {

using testing_harness::RandomWeights;
using testing_harness::UpdateRig;

constexpr int flips = 1000;

/// Where the next bit is to be flipped; the same on all ranks. Off when rank is negative.
struct Flip {
  int rank = -1;
  std::uint64_t position = 0;  ///< n-th byte that lands on that rank
  int bit = 0;
};
Flip flip;  // NOLINT: the decorator has no other way in

/// Flips a bit of what has just landed, before anybody looks at it: what a faulty link, buffer or memory does.
class FlippingWitness final : public Witness {
 public:
  FlippingWitness(Witness* inner, std::byte* slot, const RankPlan& plan) : inner_(inner), slot_(slot), plan_(&plan) {}
  void landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept override {
    if (flip.position >= seen_ && flip.position < seen_ + size_bytes) {
      slot_[plan_->shards[parameter].destination + first + (flip.position - seen_)] ^=
          static_cast<std::byte>(1 << flip.bit);
    }
    seen_ += size_bytes;
    inner_->landed(parameter, first, size_bytes);
  }
  void landed_on(const gpu::Stream& stream, std::size_t first, std::size_t count) noexcept override {
    inner_->landed_on(stream, first, count);
  }
  bool work() noexcept override { return inner_->work(); }

 private:
  Witness* inner_;
  std::byte* slot_;
  const RankPlan* plan_;
  std::uint64_t seen_ = 0;
};

/// A decorator of the transport seam.
class FlippingTransport final : public Transport {
 public:
  explicit FlippingTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
  std::string_view name() const noexcept override { return inner_->name(); }
  std::optional<std::string> probe(const Peers& peers) const override { return inner_->probe(peers); }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    inner_->attach(peers, plan, endpoints, deadline);
  }
  void run(const Batch& batch, Deadline deadline) override {
    if (flip.rank != peers_->group->rank() || peers_->trainer() || batch.witness == nullptr)
      return inner_->run(batch, deadline);
    FlippingWitness witness(batch.witness, endpoints_->sinks[batch.sink].data, plan_->ranks[peers_->tp_rank()]);
    Batch flipped = batch;
    flipped.witness = &witness;
    inner_->run(flipped, deadline);
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }

 private:
  std::unique_ptr<Transport> inner_;
  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
};

class BitFlip : public testing::TestWithParam<std::string> {};

TEST_P(BitFlip, InWhatArrivesIsRefused) {
  UpdateRig rig({.transport = GetParam()},
                [](std::unique_ptr<Transport> inner) { return std::make_unique<FlippingTransport>(std::move(inner)); });
  std::mt19937_64 random(7);
  int refused = 0;
  for (int i = 0; i < flips; ++i) {
    flip.rank = 1 + static_cast<int>(random() % rig.plan.tp);
    flip.position = random() % rig.plan.ranks[static_cast<std::size_t>(flip.rank) - 1].received_bytes;
    flip.bit = static_cast<int>(random() % 8);
    const auto error = rig.update(0, 2);
    ASSERT_TRUE(error) << "flip " << i << " went unnoticed";
    ASSERT_EQ(error->code(), ExitCode::mismatch);
    ASSERT_EQ(error->origin().rank, flip.rank);
    ++refused;
    if (i % 100 == 0) {
      ASSERT_TRUE(rig.serves(1, rig.seed1));
    }
  }
  flip = {};
  EXPECT_EQ(refused, flips);
  EXPECT_TRUE(rig.serves(1, rig.seed1));
  if (rig.trainer)
    std::printf("%d of %d bit flips in what arrives by %s refused\n", refused, flips, GetParam().c_str());
  ASSERT_FALSE(rig.update(0, 2));
  EXPECT_TRUE(rig.serves(2, rig.seed2));
}

INSTANTIATE_TEST_SUITE_P(All, BitFlip, testing::Values("mpi", "direct"));

TEST(BitFlipSource, InTheTrainersWeightsAfterLoadingIsRefused) {
  UpdateRig rig({.transport = "direct"});
  std::mt19937_64 random(8);
  int refused = 0;
  for (int i = 0; i < flips; ++i) {
    const auto p = random() % rig.plan.model.parameters.size();
    const auto offset = rig.plan.source_offsets[p] + random() % rig.seed2.bytes(p).size();
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

TEST(BitFlipSource, InTheTargetFileAfterItsDigestWasTakenIsRefused) {
  UpdateRig rig({.transport = "mpi"});
  const auto& parameters = rig.plan.model.parameters;
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("weightcast-flip-{}", ::getpid());
  std::vector<Digest> taken;
  std::uint64_t data_offset = 0;
  if (rig.trainer) {
    CheckpointContent content;
    for (const auto& rule : parameters) content.tensors.push_back(rule.info);
    content.fill = [&](std::size_t p, std::uint64_t offset, std::span<std::byte> to) { rig.seed2.read(p, offset, to); };
    write_checkpoint(folder.string(), content, 1 << 30, {}, 1);
    for (std::size_t p = 0; p < parameters.size(); ++p) taken.push_back(digest_bytes(rig.seed2.bytes(p), 0));
    data_offset = std::filesystem::file_size(folder / "model.safetensors") - rig.plan.model.size_bytes();
  }
  std::mt19937_64 random(9);
  int refused = 0;
  for (int i = 0; i < flips; ++i) {
    const auto offset = random() % rig.plan.model.size_bytes();
    const auto mask = static_cast<char>(1 << random() % 8);
    std::optional<Error> error;
    try {
      if (rig.trainer) {
        const auto toggle = [&] {
          std::fstream file(folder / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
          const auto at = static_cast<std::streamoff>(data_offset + offset);
          const auto byte = static_cast<char>(file.seekg(at).get() ^ mask);
          file.seekp(at).put(byte);
        };
        toggle();
        const auto source = make_checkpoint_source(rig.plan.model, Checkpoint::open(folder.string()));
        const auto memory = rig.trainer->source(0);
        for (std::size_t p = 0; p < parameters.size(); ++p) {
          source->read(p, 0, memory.bytes().subspan(rig.plan.source_offsets[p], *parameters[p].info.size_bytes()));
        }
        toggle();
        rig.trainer->group().publish({1, 2, 0, taken, 0, parameters.size()});
      } else {
        rig.engine->update_weights();
      }
    } catch (const Error& thrown) {
      error = thrown;
    }
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
