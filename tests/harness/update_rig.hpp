#pragma once

#include <thread>

#include "harness/replica_set.hpp"
#include "weightcast/engine/engine.hpp"

namespace weightcast::testing_harness {

/// A whole update group in a test: the trainer holds versions of seeds 2 and 1, engines serve seed 1 as version 1.
/// Tests are written as if all ranks called the verbs: the rig calls them on trainer ranks and on tp rank 0 of each
/// replica, while a thread of each other rank serves, and tells all ranks how it went.
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
    Model model = small_model();
    std::uint64_t trainers = 1;
    LayoutKind layout = LayoutKind::whole;
    bool scrub = false;
  };

  UpdateRig(const Settings& settings, const Wrap& wrap)
      : timeout_s(settings.timeout_s),
        world(Communicator::duplicate(MPI_COMM_WORLD)),
        plan(make_plan(settings.model, form_roster({}, settings.dp, world.size(), settings.trainers).tp, settings.dp,
                       layout_of(settings.model, settings.layout, settings.trainers))),
        seed1(plan.model, 1),
        seed2(plan.model, 2) {
    Placement placement;
    if (settings.memory == MemoryKind::cuda) placement = {MemoryKind::cuda, world.rank() % gpu::count()};
    GroupOptions options{plan.tp,         plan.dp,        placement,         settings.transport,
                         settings.method, settings.proof, settings.timeout_s};
    options.scrub = settings.scrub;
    if (wrap) {
      options.make_transport = [wrap](std::string_view name, Method method, MemoryKind memory) {
        return wrap(make_transport(name, method, memory));
      };
    }
    if (plan.roster().trainer(world.rank())) {
      trainer = std::make_unique<Trainer>(plan, placement, static_cast<std::size_t>(world.rank()));
      trainer->load(seed2, 1);
      trainer->load(seed1, 1);
      trainer->init_parameter_update_group(world, options, 1);
    } else {
      engine = std::make_unique<Engine>(plan, tp_rank(), settings.commit, placement);
      engine->load(
          1, [&](std::size_t p, std::uint64_t offset, std::span<std::byte> to) { seed1.read(p, offset, to); }, 1);
      engine->init_parameter_update_group(world, options);
      if (!caller()) server_ = std::jthread([this] { serve(); });
    }
    callers = world.split(caller() ? 0 : -1, world.rank(), deadline());
  }
  explicit UpdateRig(const Settings& settings) : UpdateRig(settings, {}) {}
  /// After a failure that only one rank has seen, the others do not wait for it here.
  ~UpdateRig() {
    if (engine && caller()) engine.reset();
  }

  std::size_t tp_rank() const { return plan.roster().tp_rank(world.rank()); }
  /// Whether verbs are called on this rank.
  bool caller() const { return trainer != nullptr || tp_rank() == 0; }
  Deadline deadline() const { return Deadline::after(2 * timeout_s); }

  /// Runs `body` on the callers when all ranks are here: the error that any of them met, on all ranks.
  std::optional<Error> together(FunctionRef<void()> body) {
    std::optional<Error> failure;
    world.barrier(deadline());  // what the other ranks have looked at or prepared before is done
    try {
      if (caller()) body();
    } catch (const Error& error) {
      failure = error;
    }
    try {
      agree(world, "test", deadline(), [&] {
        if (failure) throw Error(*failure);
      });
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  }

  /// One whole-model update: the error that all ranks met. `result` is set on callers.
  std::optional<Error> update(std::size_t source, std::uint64_t version, UpdateResult* result = nullptr) {
    return together([&] {
      const auto outcome =
          trainer ? trainer->update_weights(source, version) : engine->update_weights().throw_if_refused();
      if (result != nullptr) *result = outcome;
    });
  }

  /// One parameter of seed 2 as version 2.
  std::optional<Error> update_parameter(const TensorInfo& info, UpdateResult* result = nullptr) {
    return together([&] {
      const auto outcome =
          trainer ? trainer->update_parameter(0, 2, info.name)
                  : engine->update_parameter_from_distributed(info.name, info.dtype, info.shape).throw_if_refused();
      if (result != nullptr) *result = outcome;
    });
  }

  /// The same for a rollback.
  std::optional<Error> rollback(std::uint64_t version, UpdateResult* result = nullptr) {
    return together([&] {
      const auto outcome = trainer ? trainer->rollback(version) : engine->rollback(version).throw_if_refused();
      if (result != nullptr) *result = outcome;
    });
  }

  /// Engines: what is served is exactly `version` with the bytes of `weights`. Trainer: true.
  testing::AssertionResult serves(std::uint64_t version, const RandomWeights& weights) {
    if (!engine) return testing::AssertionSuccess();
    // The thread that serves may be a moment behind what all ranks agreed on.
    const auto limit = Deadline::after(5);
    for (Patience patience; engine->store().served() != version && !limit.passed(); patience.pause()) {
    }
    const auto pin = engine->store().pin();
    if (pin.version().id != version)
      return testing::AssertionFailure() << "serves version " << pin.version().id << ", not " << version;
    return slot_equals(plan, tp_rank(), HostView(pin.slot()).bytes(), weights);
  }

  double timeout_s;
  Communicator world, callers;
  TransferPlan plan;
  RandomWeights seed1, seed2;
  std::unique_ptr<Trainer> trainer;
  std::unique_ptr<Engine> engine;

 private:
  void serve() {
    try {
      engine->serve();
    } catch (const Error& error) {
      ADD_FAILURE() << "serve(): " << error.what();
    }
  }
  std::jthread server_;  // last: it uses the engine
};

}  // namespace weightcast::testing_harness
