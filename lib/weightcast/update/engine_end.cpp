#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/update/participant.hpp"
#include "weightcast/update/slot_delta.hpp"
#include "weightcast/update/witnesses.hpp"

namespace weightcast {
namespace {

class EngineEnd final : public Participant {
 public:
  EngineEnd(const TransferPlan& plan, const DeltaPlan* deltas, const GroupOptions& options, std::size_t tp_rank,
            ParameterStore& store)
      : plan_(&plan),
        timeout_s_(options.timeout_s),
        tp_rank_(tp_rank),
        store_(&store),
        endpoints_{.sources = {}, .sinks = store.slots()} {
    const bool shared = options.dp > 1 || options.placement.kind == MemoryKind::cuda;
    if (shared) endpoints_.shared_sinks = store.share();
    if (options.proof == Proof::digests) witness_ = make_slot_witness(plan, tp_rank, options.placement);
    if (witness_ && options.scrub) scrubber_ = make_slot_witness(plan, tp_rank, options.placement);
    const auto parameters = plan.model.parameters.size();
    if (deltas != nullptr)
      delta_.emplace(*deltas, store, tp_rank, options.placement, parameters, shared, witness_ != nullptr);
    if (deltas != nullptr && witness_) delta_digests_.resize(parameters);
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
    // A dirty engine has no base: only a full update helps it.
    if (served && *served != claim.base_version) {
      throw Error(ExitCode::config,
                  fmt::format("the {} version {}, but the engine serves {}",
                              back ? "rollback is from" : "update is based on", claim.base_version, *served),
                  back ? "" : "publish on top of the served version");
    }
    if (!back) {
      reserved_ = by_delta_ = applying_ = false;
      // Into the only slot a delta is written late: readers go on until then.
      if (claim.payload == Payload::dense || store_->mode() == CommitMode::swap) reserve(deadline);
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

  const Endpoints& delta_endpoints() const noexcept override { return delta_->endpoints(); }
  bool make_delta(const UpdateClaim&, const SourceChanges*, Deadline) noexcept override { return false; }
  std::size_t delta_parts(const UpdateClaim& claim) const noexcept override {
    const auto served = store_->served();
    const auto slot = served ? store_->slot_of(*served) : std::nullopt;
    const bool has_base = slot && *served == claim.base_version && (!witness_ || !proven_[*slot].empty());
    return has_base && !suspect_ ? 0 : no_delta;
  }
  void prepare_dense(Deadline deadline) override {
    if (!reserved_) reserve(deadline);
  }
  void stage_delta(const UpdateClaim&, const SourceClaim*, std::size_t parts, Transport& transport,
                   Deadline deadline) override {
    by_delta_ = true;
    delta_parts_ = parts;
    base_slot_ = *store_->slot_of(*store_->served());
    Batch batch{0, delta_->inbox_index(), {0, parts}};
    if (reserved_) {
      const auto held = store_->held(sink_);
      store_->overwrite();
      delta_->begin(sink_, held ? std::optional(held->id) : std::nullopt, parts);
      delta_->watch(batch);
    }
    transport.run(batch, deadline);
    if (!reserved_) {
      in_place_ = *store_->held(base_slot_);
      delta_->check(parts, deadline);
      reserve(deadline);  // the stage's agreement is that of all on it
    }
  }
  void report(UpdateResult& result) const noexcept override { result.apply_s = apply_s_; }

  void digest(const UpdateClaim&, bool, std::span<Digest>, Deadline deadline) override {
    if (by_delta_) return apply(deadline);
    if (witness_) witness_->finish(deadline);
  }

  void compare(const UpdateClaim& claim, std::span<const Digest> sent) const override {
    if (!witness_) return;
    for (std::size_t i = 0; i < claim.parameters; ++i) {
      const auto parameter = claim.first_parameter + i;
      const auto held = digests()[parameter], expected = sent[tp_rank_ * claim.parameters + i];
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
    expect_proven(*witness_, slot, claim.version,
                  "this host's memory is faulty or was overwritten; publish the version again");
  }

  bool scrub(const ParameterStore::Pin& pin, Deadline deadline) override {
    if (!scrubber_) return false;
    const std::scoped_lock turn(scrubbing_);
    // What is proven of a slot changes with what it holds, and that the pin prevents.
    const auto slot = static_cast<std::size_t>(std::ranges::find(store_->slots(), pin.slot().data, &Region::data) -
                                               store_->slots().begin());
    if (proven_[slot].empty()) return false;
    scrubber_->digest_beside(pin.slot(), deadline);
    try {
      expect_proven(*scrubber_, slot, pin.version().id,
                    "this host's memory is faulty or was overwritten; publish a whole version");
    } catch (...) {
      suspect_ = true;
      throw;
    }
    return true;
  }

  void commit(const UpdateClaim& claim, const HeldVersion& version) override {
    if (claim.kind == UpdateKind::rollback) return store_->roll_back(version.id);
    if (witness_) proven_[sink_] = digests();
    if (by_delta_) {
      delta_->commit(claim.base_version, version.id);
    } else {
      suspect_ = false;
    }
    by_delta_ = false;
    store_->publish(version);
  }

  void drop() noexcept override {
    if (!by_delta_) return store_->drop();
    by_delta_ = false;
    delta_->drop(Deadline::after(timeout_s_));
    // Whatever was refused: the next version comes whole.
    suspect_ = suspect_ || applying_;
    const bool in_place = store_->mode() == CommitMode::in_place;
    if (in_place && applying_ && delta_->undo(sink_, Deadline::after(timeout_s_))) return store_->restore(in_place_);
    store_->drop();
  }

 private:
  /// Error(mismatch) naming the first parameter of a slot, as it was digested, that is not what was committed.
  void expect_proven(const SlotWitness& witness, std::size_t slot, std::uint64_t version, const char* hint) const {
    const auto& held = witness.shards();
    const auto [differs, expected] = std::mismatch(held.begin(), held.end(), proven_[slot].begin());
    if (differs == held.end()) return;
    const auto parameter = static_cast<std::size_t>(differs - held.begin());
    throw Error(ExitCode::mismatch,
                fmt::format("{} of version {} is not what was committed: digest {} instead of {}",
                            plan_->model.parameters[parameter].info.name, version, differs->hex(), expected->hex()),
                hint);
  }
  void reserve(Deadline deadline) {
    sink_ = store_->reserve(deadline);
    reserved_ = true;
  }
  /// Of what the sink holds, by parameter.
  const std::vector<Digest>& digests() const noexcept { return by_delta_ ? delta_digests_ : witness_->shards(); }

  /// VERIFY of a delta: the digests of what it makes of what the engine has.
  void apply(Deadline deadline) {
    const Stopwatch watch;
    applying_ = true;
    if (store_->mode() == CommitMode::in_place) {
      store_->overwrite();
    } else {
      check_base(delta_->finish_base(deadline));
    }
    const auto [whole, made] = delta_->apply(sink_, delta_parts_, deadline);
    for (std::size_t p = 0; p < delta_digests_.size(); ++p)
      delta_digests_[p] = whole ? made[p] : proven_[base_slot_][p] + made[p];
    apply_s_ = watch.elapsed_s();
  }
  /// Error(mismatch) unless the spare slot, with these changes, is what is served.
  void check_base(std::span<const Digest> changes) const {
    if (!witness_) return;  // nor is there any where the base comes with the delta
    for (std::size_t p = 0; p < changes.size(); ++p) {
      if (proven_[sink_][p] + changes[p] == proven_[base_slot_][p]) continue;
      throw Error(ExitCode::mismatch,
                  fmt::format("{} changed in the spare slot since it was served, or the delta that was kept for it did",
                              plan_->model.parameters[p].info.name),
                  "this host's memory is faulty; publish again: then all bytes are sent");
    }
  }

  const TransferPlan* plan_;
  double timeout_s_;
  std::size_t tp_rank_;
  ParameterStore* store_;
  Endpoints endpoints_;
  std::unique_ptr<SlotWitness> witness_;       // with proof
  std::size_t sink_ = 0;                       // slot of the open update
  std::array<std::vector<Digest>, 2> proven_;  // with proof: shard digests of what each slot holds
  std::unique_ptr<SlotWitness> scrubber_;      // with proof and GroupOptions::scrub
  std::mutex scrubbing_;

  bool reserved_ = false;              // in the open update: the sink is
  std::optional<SlotDelta> delta_;     // with deltas
  std::vector<Digest> delta_digests_;  // with proof: of what the delta made, by parameter
  bool by_delta_ = false;              // the open update
  bool applying_ = false;              // and it has begun to write
  // What is served may not be what was committed, or the spare slot: no deltas until all bytes have come. A scrub says
  // so on whatever thread, also once more when it ends after such a commit: then the next version comes whole, too.
  std::atomic<bool> suspect_ = false;
  std::size_t delta_parts_ = 0, base_slot_ = 0;
  HeldVersion in_place_;  // what the only slot holds without the delta
  double apply_s_ = 0;
};

}  // namespace

std::unique_ptr<Participant> make_engine_end(const TransferPlan& plan, const DeltaPlan* deltas,
                                             const GroupOptions& options, std::size_t tp_rank, ParameterStore& store) {
  return std::make_unique<EngineEnd>(plan, deltas, options, tp_rank, store);
}

}  // namespace weightcast
