#pragma once

#include "harness/replica_set.hpp"
#include "weightcast/engine/engine.hpp"

namespace weightcast::testing_harness {

/// A whole update group in a test: the trainer holds versions of seeds 2 and 1, engines serve seed 1 as version 1.
/// Both sides call update() together.
class UpdateRig {
 public:
  using Wrap = std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)>;

  struct Settings {
    std::string transport = "mpi";
    Method method = Method::sharded;
    std::uint64_t dp = 1;
    CommitMode commit = CommitMode::swap;
    Proof proof = Proof::digests;
    double timeout_s = 20;
    MemoryKind memory = MemoryKind::host;
  };

  UpdateRig(const Settings& settings, const Wrap& wrap)
      : world(Communicator::duplicate(MPI_COMM_WORLD)),
        plan(make_plan(small_model(), (static_cast<std::uint64_t>(world.size()) - 1) / settings.dp, settings.dp)),
        seed1(plan.model, 1),
        seed2(plan.model, 2) {
    Placement placement;
    if (settings.memory == MemoryKind::cuda) placement = {MemoryKind::cuda, world.rank() % gpu::count()};
    const GroupOptions options{plan.tp,         plan.dp,        placement,         settings.transport,
                               settings.method, settings.proof, settings.timeout_s};
    if (world.rank() == 0) {
      trainer = std::make_unique<Trainer>(plan, placement);
      trainer->load(seed2, 1);
      trainer->load(seed1, 1);
      trainer->init_parameter_update_group(world, options, 1, wrap);
    } else {
      engine = std::make_unique<Engine>(plan, tp_rank(), settings.commit, placement);
      engine->load(
          1, [&](std::size_t p, std::uint64_t offset, std::span<std::byte> to) { seed1.read(p, offset, to); }, 1);
      engine->init_parameter_update_group(world, options, wrap);
    }
  }
  explicit UpdateRig(const Settings& settings) : UpdateRig(settings, {}) {}

  std::size_t tp_rank() const { return (static_cast<std::size_t>(world.rank()) - 1) % plan.tp; }

  /// One whole-model update on every rank: the result, or the error that all ranks threw.
  std::optional<Error> update(std::size_t source, std::uint64_t version, UpdateResult* result = nullptr) {
    try {
      const auto outcome = trainer ? trainer->update_weights(source, version) : engine->update_weights();
      if (result != nullptr) *result = outcome;
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  }

  /// The same for a rollback.
  std::optional<Error> rollback(std::uint64_t version, UpdateResult* result = nullptr) {
    try {
      const auto outcome = trainer ? trainer->rollback(version) : engine->update_weights();
      if (result != nullptr) *result = outcome;
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  }

  /// Engines: what is served is exactly `version` with the bytes of `weights`. Trainer: true.
  testing::AssertionResult serves(std::uint64_t version, const RandomWeights& weights) {
    if (!engine) return testing::AssertionSuccess();
    const auto pin = engine->store().pin();
    if (pin.version().id != version)
      return testing::AssertionFailure() << "serves version " << pin.version().id << ", not " << version;
    return slot_equals(plan, tp_rank(), HostView(pin.slot()).bytes(), weights);
  }

  Communicator world;
  TransferPlan plan;
  RandomWeights seed1, seed2;
  std::unique_ptr<Trainer> trainer;
  std::unique_ptr<Engine> engine;
};

}  // namespace weightcast::testing_harness
