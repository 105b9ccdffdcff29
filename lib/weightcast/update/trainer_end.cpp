#include <utility>

#include "weightcast/delta/delta_sender.hpp"
#include "weightcast/update/participant.hpp"
#include "weightcast/update/witnesses.hpp"

namespace weightcast {
namespace {

class TrainerEnd final : public Participant {
 public:
  TrainerEnd(const TransferPlan& plan, const DeltaPlan* deltas, const GroupOptions& options,
             const Communicator& trainers, std::vector<const Buffer*> sources, bool crowded)
      : plan_(&plan),
        trainers_(&trainers),
        endpoints_{.sources = std::move(sources), .sinks = {}},
        held_(plan.model.parameters.size()),
        parameter_digests_(plan.model.parameters.size()) {
    if (deltas != nullptr) {
      sender_ = make_delta_sender(*deltas, static_cast<std::size_t>(trainers.rank()), options.placement);
      delta_endpoints_.sources = {&sender_->outbox()};
    }
    if (options.proof == Proof::none) return;
    witness_ = make_source_witness(plan, static_cast<std::size_t>(trainers.rank()), options.placement, crowded);
    model_digest_.emplace(plan.model);
  }

  const Endpoints& endpoints() const noexcept override { return endpoints_; }
  bool can_rehearse() const noexcept override { return true; }
  void rehearse(Transport& transport, std::size_t source_index, std::size_t count, Deadline deadline) override {
    transport.run({source_index, 0, {0, count}}, deadline);
  }
  void settle(Deadline) override {}

  void prepare(const UpdateClaim& claim, Deadline) override {
    if (claim.kind == UpdateKind::weights && claim.source_index >= endpoints_.sources.size())
      fail(ExitCode::config, "there is no version {}: there are {}", claim.source_index, endpoints_.sources.size());
  }

  void stage(const UpdateClaim& claim, const SourceClaim* claimed, Transport& transport, Deadline deadline) override {
    Batch batch{claim.source_index, 0, {claim.first_parameter, claim.parameters}};
    begin_digests(claim, claimed, batch);
    transport.run(batch, deadline);
  }

  const Endpoints& delta_endpoints() const noexcept override { return delta_endpoints_; }
  bool make_delta(const UpdateClaim& claim, const SourceChanges* changes, Deadline deadline) noexcept override {
    made_.reset();
    if (changes == nullptr || changes->since() != claim.base_version || claim.parameters != held_.size() ||
        claim.source_index >= endpoints_.sources.size()) {
      return false;
    }
    try {
      made_ = sender_->make(changes->marks(), region(claim), deadline);
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): what is wrong with this GPU will show where all see it
    }
    return made_.has_value();
  }
  std::size_t delta_parts(const UpdateClaim&) const noexcept override { return made_ ? made_->parts : no_delta; }
  void prepare_dense(Deadline) override {}
  void stage_delta(const UpdateClaim& claim, const SourceClaim* claimed, std::size_t parts, Transport& transport,
                   Deadline deadline) override {
    Batch batch{0, 0, {0, parts}}, all{claim.source_index, 0, {0, held_.size()}};
    begin_digests(claim, claimed, all);
    batch.idle = all.idle;
    transport.run(batch, deadline);
  }
  void report(UpdateResult& result) const noexcept override {
    result.shipped_bytes = made_->size_bytes;
    result.changed_elements = made_->entries;
  }

  void digest(const UpdateClaim& claim, bool completes, std::span<Digest> sent, Deadline deadline) override {
    if (!witness_) return;
    if (claimed_ == nullptr) witness_->finish(deadline);
    const auto& digests = claimed_ != nullptr ? *claimed_ : witness_->claim();
    const auto first = claim.first_parameter, count = claim.parameters;
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t t = 0; t < plan_->tp; ++t) sent[t * count + i] = digests.shard(t, first + i);
      held_[first + i] = digests.held(first + i);
    }
    if (trainers_->size() > 1) trainers_->sum(words_of(sent), deadline);
    for (std::size_t i = 0; i < count; ++i) {
      auto& whole = parameter_digests_[first + i] = {};
      for (std::size_t t = 0; t < plan_->tp; ++t) {
        if (!plan_->copy(t, first + i)) whole += sent[t * count + i];
      }
    }
    sent.back() = completes ? model_digest_->of(parameter_digests_) : Digest{};
  }

  void compare(const UpdateClaim&, std::span<const Digest>) const override {}

  void prove_source(const UpdateClaim& claim, Deadline deadline) override {
    if (!witness_) return;  // a delta that does not fit is found without proof, too
    Batch batch{claim.source_index, 0, {claim.first_parameter, claim.parameters}};
    witness_->begin(region(claim), batch);
    witness_->finish(deadline);
    for (auto p = claim.first_parameter; p < claim.first_parameter + claim.parameters; ++p) {
      const auto is = witness_->claim().held(p);
      if (is == held_[p]) continue;
      throw Error(ExitCode::mismatch,
                  fmt::format("{} changed between loading and sending: its digest was {} and is {}",
                              plan_->model.parameters[p].info.name, held_[p].hex(), is.hex()),
                  "the trainer's memory or its file was overwritten; publish again");
    }
  }

  // Of a rollback, its proof and scrubs engines know alone.
  void prove_held(const UpdateClaim&, Deadline) override {}
  bool scrub(const ParameterStore::Pin&, Deadline) override { return false; }
  void commit(const UpdateClaim&, const HeldVersion&) override {}
  void drop() noexcept override {}

 private:
  /// Digests as the numbers that add up.
  static std::span<std::uint64_t> words_of(std::span<Digest> digests) noexcept {
    static_assert(sizeof(Digest) == 2 * sizeof(std::uint64_t));
    return {&digests.front().first, 2 * digests.size()};
  }
  /// Those that VERIFY wants, where nobody has taken them yet.
  void begin_digests(const UpdateClaim& claim, const SourceClaim* claimed, Batch& batch) {
    claimed_ = claimed != nullptr && claimed->knows(batch.parameters) ? claimed : nullptr;
    if (witness_ && claimed_ == nullptr) witness_->begin(region(claim), batch);
  }
  Region region(const UpdateClaim& claim) const { return endpoints_.sources[claim.source_index]->region(); }

  const TransferPlan* plan_;
  const Communicator* trainers_;
  Endpoints endpoints_, delta_endpoints_;
  std::unique_ptr<DeltaSender> sender_;     // with deltas
  std::optional<DeltaSender::Made> made_;   // for the open call
  std::unique_ptr<SourceWitness> witness_;  // with proof
  const SourceClaim* claimed_ = nullptr;    // of the open call, when it knows all its parameters
  std::optional<ModelDigest> model_digest_;
  // As sent in the open update, by parameter: what this rank has of it, and the whole.
  std::vector<Digest> held_, parameter_digests_;
};

}  // namespace

std::unique_ptr<Participant> make_trainer_end(const TransferPlan& plan, const DeltaPlan* deltas,
                                              const GroupOptions& options, const Communicator& trainers,
                                              std::vector<const Buffer*> sources, bool crowded) {
  return std::make_unique<TrainerEnd>(plan, deltas, options, trainers, std::move(sources), crowded);
}

}  // namespace weightcast
