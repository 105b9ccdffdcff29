#pragma once

#include <memory>
#include <span>
#include <vector>

#include "weightcast/delta/delta_plan.hpp"
#include "weightcast/update/update_group.hpp"

namespace weightcast {

/// One end of an update: what one rank does in each stage. The transaction (transaction.cpp) is the same for both ends;
/// each verb is local but for what it says, and the outcome is agreed on by all ranks before the next one.
class Participant {
 public:
  virtual ~Participant() = default;

  /// The memory that is moved from or into; it lives as long as this object.
  virtual const Endpoints& endpoints() const noexcept = 0;
  /// Whether bytes may move here before the first update: not into the only slot.
  virtual bool can_rehearse() const noexcept = 0;
  /// Moves parameters [0, `count`) of source region `source_index` once, so that connections, buffers and mappings are
  /// ready.
  virtual void rehearse(Transport& transport, std::size_t source_index, std::size_t count, Deadline deadline) = 0;
  /// The group stands: what this end serves already is noted, so that a rollback to it can be proven.
  virtual void settle(Deadline deadline) = 0;

  /// PREPARE of the first call of an update, or of a rollback: refuses by throwing what does not fit what is held here.
  /// Then nothing has changed.
  virtual void prepare(const UpdateClaim& claim, Deadline deadline) = 0;
  /// STAGE: takes part in moving the parameters of this call. `claimed`: see UpdateRequest, nullptr on engines.
  virtual void stage(const UpdateClaim& claim, const SourceClaim* claimed, Transport& transport, Deadline deadline) = 0;

  // Deltas, in groups that have them; then `transport` is what moves their parts.
  /// The memory that they are moved from or into.
  virtual const Endpoints& delta_endpoints() const noexcept = 0;
  /// Trainer ranks, before the offer: makes the delta of what is to be claimed, of these changes (nullptr: none).
  /// Whether there is one.
  virtual bool make_delta(const UpdateClaim& claim, const SourceChanges* changes, Deadline deadline) noexcept = 0;
  /// How many of its parts must move, 0 on engines; or no_delta: this rank cannot send it, or cannot take it.
  virtual std::size_t delta_parts(const UpdateClaim& claim) const noexcept = 0;
  static constexpr std::size_t no_delta = SIZE_MAX;
  /// A delta was offered, but somebody has none: what prepare() has left to do for all bytes.
  virtual void prepare_dense(Deadline deadline) = 0;
  /// STAGE of a delta: moves so many parts.
  virtual void stage_delta(const UpdateClaim& claim, const SourceClaim* claimed, std::size_t parts,
                           Transport& transport, Deadline deadline) = 0;
  /// What this rank says of the last call beside times and traffic.
  virtual void report(UpdateResult& result) const noexcept = 0;

  /// VERIFY, first half: digests of what was moved; of a delta, which engines apply here, of what that made. Trainer
  /// ranks write into `sent` those of all shards, by tp rank and then parameter, as they were claimed or else as they
  /// are, and last that of the model if the call completes it: the sums over all trainer ranks, which is collective
  /// over these.
  virtual void digest(const UpdateClaim& claim, bool completes, std::span<Digest> sent, Deadline deadline) = 0;
  /// VERIFY, second half: Error(mismatch) naming the parameter that is not what was `sent`.
  virtual void compare(const UpdateClaim& claim, std::span<const Digest> sent) const = 0;
  /// After a mismatch: Error(mismatch) from a trainer rank when its source is not what was claimed, naming the
  /// parameter.
  virtual void prove_source(const UpdateClaim& claim, Deadline deadline) = 0;
  /// VERIFY of a rollback: Error(mismatch) when what is held is not what was committed.
  virtual void prove_held(const UpdateClaim& claim, Deadline deadline) = 0;
  /// Outside of the stages, and beside them: whether the pinned version was committed (or served when the group was
  /// formed) with digests. Error(mismatch) when they are not those of all that its slot holds. With
  /// GroupOptions::scrub; allocates nothing.
  virtual bool scrub(const ParameterStore::Pin& pin, Deadline deadline) = 0;
  /// COMMIT: `version` is served from now on; by a rollback, again.
  virtual void commit(const UpdateClaim& claim, const HeldVersion& version) = 0;
  /// ABORT: what was staged is dropped.
  virtual void drop() noexcept = 0;
};

/// A trainer rank's end. `deltas`: nullptr for none. `trainers`: of all trainer ranks. `crowded`: see SourceWitness.
/// All must outlive it.
std::unique_ptr<Participant> make_trainer_end(const TransferPlan& plan, const DeltaPlan* deltas,
                                              const GroupOptions& options, const Communicator& trainers,
                                              std::vector<const Buffer*> sources, bool crowded);
/// An engine rank's end.
std::unique_ptr<Participant> make_engine_end(const TransferPlan& plan, const DeltaPlan* deltas,
                                             const GroupOptions& options, std::size_t tp_rank, ParameterStore& store);

}  // namespace weightcast
