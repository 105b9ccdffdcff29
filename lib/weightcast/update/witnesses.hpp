#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "weightcast/transport/transport.hpp"
#include "weightcast/verify/shard_digests.hpp"

/// Who digests on both ends of a movement, on a host or on a GPU.
namespace weightcast {

/// Engine: digests what lands in the slot; on the host block by block while it is in cache, on a GPU by kernels that
/// follow the movement, or by the one that copies.
class SlotWitness {
 public:
  explicit SlotWitness(const TransferPlan& plan) : digests_(plan.model.parameters.size()) {}
  virtual ~SlotWitness() = default;
  /// Starts over for these parameters; whoever moves the batch tells this object. It is run before finish().
  virtual void begin(const Region& slot, Batch& batch) = 0;
  /// Waits for the digests of this call's parameters.
  virtual void finish(Deadline deadline) = 0;
  /// Digests all that a slot holds, whoever put it there.
  virtual void digest(const Region& slot, Deadline deadline) = 0;
  /// The same, beside readers and movements: on a host on the caller's thread alone, on a GPU by about half of it.
  /// Allocates nothing.
  virtual void digest_beside(const Region& slot, Deadline deadline) = 0;
  /// Of all shards that were digested so far, by parameter.
  const std::vector<Digest>& shards() const noexcept { return digests_; }

 protected:
  std::vector<Digest> digests_;
};
std::unique_ptr<SlotWitness> make_slot_witness(const TransferPlan& plan, std::size_t tp_rank, Placement placement);

/// A trainer rank: digests what it sends, while it is being sent; where that is `crowded`, after the movement: on a
/// host with fewer cores than ranks (then on all cores), on a GPU that all engines share (processes take turns on it,
/// and each turn costs; an engine across a link takes so much longer that this does not matter).
class SourceWitness {
 public:
  virtual ~SourceWitness() = default;
  /// Starts over for these parameters; may be the work that the batch has for whoever waits. It is run before finish().
  virtual void begin(const Region& source, Batch& batch) = 0;
  virtual void finish(Deadline deadline) = 0;
  /// Of what was begun; complete after finish().
  virtual const SourceClaim& claim() const noexcept = 0;
};
std::unique_ptr<SourceWitness> make_source_witness(const TransferPlan& plan, std::size_t trainer_rank,
                                                   Placement placement, bool crowded);

}  // namespace weightcast
