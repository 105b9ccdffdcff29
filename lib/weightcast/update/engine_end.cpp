#include <algorithm>
#include <array>

#include "weightcast/update/participant.hpp"
#include "weightcast/update/witnesses.hpp"

namespace weightcast {
namespace {

class EngineEnd final : public Participant {
 public:
  EngineEnd(const TransferPlan& plan, const GroupOptions& options, std::size_t tp_rank, ParameterStore& store)
      : plan_(&plan), tp_rank_(tp_rank), store_(&store), endpoints_{.sources = {}, .sinks = store.slots()} {
    if (options.dp > 1 || options.placement.kind == MemoryKind::cuda) endpoints_.shared_sinks = store.share();
    if (options.proof == Proof::digests) witness_ = make_slot_witness(plan, tp_rank, options.placement);
  }

  const Endpoints& endpoints() const noexcept override { return endpoints_; }
  bool can_rehearse() const noexcept override { return store_->slots().size() > 1; }
  void rehearse(Transport& transport, std::size_t source_index, std::size_t count, Deadline deadline) override {
    const auto slot = store_->stage(deadline);
    try {
      transport.run({source_index, slot, {0, count}}, deadline);
    } catch (...) {
      store_->drop();
      throw;
    }
    store_->drop();
  }
  void settle(Deadline deadline) override {
    const auto served = store_->served();
    const auto slot = served ? store_->slot_of(*served) : std::nullopt;
    if (!witness_ || !slot) return;
    witness_->digest(store_->slots()[*slot], deadline);
    proven_[*slot] = witness_->shards();
  }

  void prepare(const UpdateClaim& claim, Deadline deadline) override {
    const auto served = store_->served();
    const bool back = claim.kind == UpdateKind::rollback;
    // A dirty engine has no base: only a full update helps it, and every update is full.
    if (served && *served != claim.base_version) {
      throw Error(ExitCode::config,
                  fmt::format("the {} version {}, but the engine serves {}",
                              back ? "rollback is from" : "update is based on", claim.base_version, *served),
                  back ? "" : "publish on top of the served version");
    }
    if (!back) {
      sink_ = store_->reserve(deadline);
      return;
    }
    const auto slot = store_->slot_of(claim.version);
    if (slot && (!witness_ || !proven_[*slot].empty())) return;
    throw Error(ExitCode::config, fmt::format("version {} is not held any more", claim.version),
                store_->mode() == CommitMode::in_place
                    ? "an engine with --commit in-place has one slot; publish it again"
                    : "the other slot was overwritten since; publish it again");
  }

  void stage(const UpdateClaim& claim, const SourceClaim*, Transport& transport, Deadline deadline) override {
    Batch batch{claim.source_index, sink_, {claim.first_parameter, claim.parameters}};
    if (witness_) witness_->begin(store_->slots()[sink_], batch);
    // Only now: until PREPARE was agreed on, requests of other ranks could still need what the slot holds.
    store_->overwrite();
    transport.run(batch, deadline);
  }

  void digest(const UpdateClaim&, bool, std::span<Digest>, Deadline deadline) override {
    if (witness_) witness_->finish(deadline);
  }

  void compare(const UpdateClaim& claim, std::span<const Digest> sent) const override {
    if (!witness_) return;
    for (std::size_t i = 0; i < claim.parameters; ++i) {
      const auto parameter = claim.first_parameter + i;
      const auto held = witness_->shards()[parameter], expected = sent[tp_rank_ * claim.parameters + i];
      if (held == expected) continue;
      throw Error(ExitCode::mismatch,
                  fmt::format("{} arrived with other bytes than were sent: digest {} instead of {}",
                              plan_->model.parameters[parameter].info.name, held.hex(), expected.hex()),
                  "the link, a buffer or this host's memory is faulty; check its error counters, then publish again");
    }
  }

  void prove_source(const UpdateClaim&, Deadline) override {}

  void prove_held(const UpdateClaim& claim, Deadline deadline) override {
    if (!witness_) return;
    const auto slot = *store_->slot_of(claim.version);
    witness_->digest(store_->slots()[slot], deadline);
    const auto& digests = witness_->shards();
    const auto [differs, expected] = std::mismatch(digests.begin(), digests.end(), proven_[slot].begin());
    if (differs == digests.end()) return;
    const auto parameter = static_cast<std::size_t>(differs - digests.begin());
    throw Error(
        ExitCode::mismatch,
        fmt::format("{} of version {} is not what was committed: digest {} instead of {}",
                    plan_->model.parameters[parameter].info.name, claim.version, differs->hex(), expected->hex()),
        "this host's memory is faulty or was overwritten; publish the version again");
  }

  void commit(const UpdateClaim& claim, const HeldVersion& version) override {
    if (claim.kind == UpdateKind::rollback) return store_->roll_back(version.id);
    if (witness_) proven_[sink_] = witness_->shards();
    store_->publish(version);
  }

  void drop() noexcept override { store_->drop(); }

 private:
  const TransferPlan* plan_;
  std::size_t tp_rank_;
  ParameterStore* store_;
  Endpoints endpoints_;
  std::unique_ptr<SlotWitness> witness_;       // with proof
  std::size_t sink_ = 0;                       // slot of the open update
  std::array<std::vector<Digest>, 2> proven_;  // with proof: shard digests of what each slot holds
};

}  // namespace

std::unique_ptr<Participant> make_engine_end(const TransferPlan& plan, const GroupOptions& options, std::size_t tp_rank,
                                             ParameterStore& store) {
  return std::make_unique<EngineEnd>(plan, options, tp_rank, store);
}

}  // namespace weightcast
