#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "harness/hooked_transport.hpp"
#include "harness/model_bytes.hpp"
#include "harness/piece_loop.hpp"
#include "harness/replica_set.hpp"
#include "weightcast/store/parameter_store.hpp"
#include "weightcast/trainer/trainer.hpp"

/// Update groups whose versions change a little at a time, and what they must hold by then.
namespace weightcast::testing_harness {

using Bytes = std::vector<std::vector<std::byte>>;  ///< by parameter

/// Changes about that share of the 16-bit units, to other bits: one here and there, or runs of up to `run` in a row.
inline void change(Bytes& weights, double share, std::uint64_t run, std::mt19937_64& random) {
  std::bernoulli_distribution begins(std::min(1.0, share / static_cast<double>(run)));
  for (auto& bytes : weights) {
    for (std::size_t unit = 0; unit < bytes.size() / 2; ++unit) {
      if (!begins(random)) continue;
      for (std::uint64_t i = 0; i < run && unit < bytes.size() / 2; ++i, ++unit) {
        const auto bits = random() % 0xffff + 1;
        bytes[2 * unit] ^= static_cast<std::byte>(bits);
        bytes[2 * unit + 1] ^= static_cast<std::byte>(bits >> 8);
      }
    }
  }
}

inline void flip(const Region& memory, std::uint64_t bit) {
  std::byte value{};
  read_region(memory, bit / 8, {&value, 1});
  value ^= static_cast<std::byte>(1 << bit % 8);
  write_region(memory, bit / 8, {&value, 1});
}

/// Every rank calls every function with the same arguments.
class DeltaRig {
 public:
  struct Settings {
    Model model = small_model();
    std::string transport = "mpi";
    std::uint64_t trainers = 1, tp = 1, dp = 1;
    LayoutKind layout = LayoutKind::whole;
    CommitMode commit = CommitMode::swap;
    Proof proof = Proof::digests;
    MemoryKind memory = MemoryKind::host;
    double delta_limit = 0.4;
    std::size_t regions = 1;
    double timeout_s = 20;
    bool scrub = false;
  };

  DeltaRig(const Communicator& parent, const Settings& settings, const Hooks& hooks)
      : plan(make_plan(settings.model, settings.tp, settings.dp,
                       layout_of(settings.model, settings.layout, settings.trainers))),
        group_ranks(parent),
        served(harness::model_bytes(settings.model, 1)) {
    Placement placement;
    if (settings.memory == MemoryKind::cuda)  // trainer ranks on the first: there are their tensors
      placement = {MemoryKind::cuda, plan.roster().trainer(parent.rank()) ? 0 : parent.rank() % gpu::count()};
    GroupOptions options;
    options.tp = settings.tp;
    options.dp = settings.dp;
    options.placement = placement;
    options.transport = settings.transport;
    options.proof = settings.proof;
    options.timeout_s = settings.timeout_s;
    options.delta_limit = settings.delta_limit;
    options.scrub = settings.scrub;
    options.make_transport = hooked(hooks);
    if (plan.roster().trainer(parent.rank())) {
      trainer = std::make_unique<Trainer>(plan, placement, static_cast<std::size_t>(parent.rank()));
      for (std::size_t i = 0; i < settings.regions; ++i) trainer->reserve();
      trainer->init_parameter_update_group(parent, options, 0);
    } else {
      store = std::make_unique<ParameterStore>(plan, settings.commit, placement);
      engine = std::make_unique<UpdateGroup>(parent, plan, options, std::vector<const Buffer*>(), store.get());
    }
  }

  UpdateGroup& group() const { return trainer ? trainer->group() : *engine; }
  std::size_t tp_rank() const { return plan.roster().tp_rank(group_ranks.rank()); }

  /// Trainer ranks: puts their pieces of all of this into a region.
  void fill(std::size_t region, const Bytes& weights) {
    if (!trainer) return;
    const auto rank = static_cast<std::size_t>(group_ranks.rank());
    const auto dtype = plan.model.parameters.front().info.dtype;
    const bool on_gpu = trainer->source(region).kind == MemoryKind::cuda;
    const harness::PieceLoop loop(plan, rank, weights, dtype, 0, on_gpu ? 1 : 0);
    trainer->fill(region, loop.tensors);
  }
  /// One update of what a region has: the error that this rank met. `result`: of this rank.
  std::optional<Error> publish(std::size_t region, std::uint64_t version, UpdateResult& result) {
    try {
      result = trainer ? trainer->update_weights(region, version) : engine->receive(Deadline::after(30)).value();
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  }
  /// Whether this rank's served slot is that, and padding is zero.
  testing::AssertionResult holds(const Bytes& weights, std::uint64_t version) const {
    if (!store) return testing::AssertionSuccess();
    const auto pin = store->pin();
    if (pin.version().id != version)
      return testing::AssertionFailure() << "serves version " << pin.version().id << ", not " << version;
    const HostView view(pin.slot());
    const auto expected = harness::slot_of(plan, tp_rank(), weights);
    const auto [here, there] = std::mismatch(expected.begin(), expected.end(), view.bytes().begin());
    if (here == expected.end()) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "byte " << here - expected.begin() << " of the slot of rank "
                                       << group_ranks.rank() << " differs";
  }

  TransferPlan plan;
  const Communicator& group_ranks;
  Bytes served;
  std::unique_ptr<Trainer> trainer;
  std::unique_ptr<ParameterStore> store;
  std::unique_ptr<UpdateGroup> engine;
};

}  // namespace weightcast::testing_harness
