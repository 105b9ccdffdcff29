#pragma once

#include <array>
#include <exception>
#include <optional>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/update/offer.hpp"
#include "weightcast/update/update_group.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {

/// Engine: digests what lands in the slot; on the host block by block while it is in cache, on a GPU by kernels that
/// follow the movement.
class SlotWitness final : public Witness {
 public:
  SlotWitness(const TransferPlan& plan, std::size_t tp_rank, Placement placement);
  void begin(const Region& slot, std::size_t first, std::size_t count);
  void landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept override;
  void landed_on(const gpu::Stream& stream, std::size_t first, std::size_t count) noexcept override;
  bool copy_on(gpu::Stream& stream, const std::byte* source, std::size_t first, std::size_t count) noexcept override;
  bool work() noexcept override { return false; }
  /// Waits for the digests of this call's parameters.
  void finish(Deadline deadline);
  Digest shard(std::size_t parameter) const noexcept { return digests_[parameter]; }
  /// Digests all that a slot holds, whoever put it there. Of all shards, by parameter.
  std::span<const Digest> digest(const Region& slot, Deadline deadline);
  std::span<const Digest> shards() const noexcept { return digests_; }

 private:
  const TransferPlan* plan_;
  std::size_t tp_rank_;
  std::byte* slot_ = nullptr;
  std::size_t first_ = 0, count_ = 0;
  std::vector<Digest> digests_;
  std::optional<GpuDigests> gpu_;
  std::exception_ptr error_;  // of landed_on() and copy_on(), which may not throw
};

/// Trainer: digests what is sent, while it is being sent; where that is `crowded`, after the movement: on a host with
/// fewer cores than ranks (then on all cores), on a GPU that all engines share (processes take turns on it, and each
/// turn costs; an engine across a link takes so much longer that this does not matter).
class SourceWitness final : public Witness {
 public:
  SourceWitness(const TransferPlan& plan, Placement placement, bool crowded);
  void begin(const Region& source, std::size_t first, std::size_t count);
  void landed(std::size_t, std::uint64_t, std::uint64_t) noexcept override {}
  void landed_on(const gpu::Stream&, std::size_t, std::size_t) noexcept override {}
  bool work() noexcept override;
  void finish(Deadline deadline);
  /// Complete after finish().
  const SourceDigests& digests() const noexcept { return digests_; }

 private:
  const TransferPlan* plan_;
  bool crowded_;
  std::size_t first_ = 0, count_ = 0;
  SourceDigests digests_;
  std::optional<GpuDigests> gpu_;
};

/// An update whose parameters are arriving.
struct OpenUpdate {
  std::uint64_t base_version = 0, version = 0;
  std::size_t sink = 0;
  std::size_t missing = 0;  ///< parameters
};

struct UpdateGroup::State {
  const TransferPlan* plan = nullptr;
  GroupOptions options;
  ParameterStore* store = nullptr;
  Communicator group, replica;
  std::optional<Offers> offers;
  Peers peers;
  Endpoints endpoints;
  std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)> wrap;
  std::unique_ptr<Transport> transport;
  std::vector<std::unique_ptr<Transport>> retired;  // failed ones: see Transport::run()
  bool transport_failed = false;                    // the same on all ranks
  bool lost = false;                                // a rank is out of reach
  std::string transport_notes;
  double init_s = 0, warmup_s = 0;

  std::optional<SlotWitness> slot_witness;      // engine, with proof
  std::optional<SourceWitness> source_witness;  // trainer, with proof
  std::optional<ModelDigest> model_digest;      // trainer, with proof
  std::optional<OpenUpdate> open;
  std::vector<bool> arrived;              // of the open update, by parameter
  std::vector<Digest> parameter_digests;  // trainer: of the open update
  std::vector<Digest> sent;    // exchange buffer: shard digests of all tp ranks for one call, then the model's
  HeldVersion last, previous;  // what was committed, and what before
  std::array<std::vector<Digest>, 2> proven;  // engine, with proof: shard digests of what each slot holds

  bool trainer() const noexcept { return peers.trainer(); }
  Deadline deadline() const noexcept { return Deadline::after(options.timeout_s); }

  /// Attaches the named transport, or the first that all ranks can use, and notes why others were passed over.
  void choose_transport();
  /// Takes a fresh transport of the same kind in place of one that failed.
  void replace_transport();
  /// Moves the first parameters once into the spare slots, on GPUs all of them, so that connections, buffers and
  /// mappings are ready before the first update.
  void warm_up();

  // The stages, in transaction.cpp. Each is what one rank does locally; agree() makes the outcome everybody's.
  void prepare(const UpdateClaim& claim, Deadline deadline);
  void stage(const UpdateClaim& claim, Deadline deadline);
  void verify(const UpdateClaim& claim, std::span<const Digest> claimed, Deadline deadline);
  bool complete() const noexcept { return open->missing == 0; }
  void commit();
  void abort() noexcept;

  // Rollback, in rollback.cpp.
  /// Digests what is served at the start, so that a rollback to it can be proven. Collective.
  void prove_served();
  void prepare_rollback(const UpdateClaim& claim) const;
  void verify_rollback(const UpdateClaim& claim, Deadline deadline);
  void commit_rollback(const UpdateClaim& claim);

  /// Trainer: offers the claim, and when all engines have taken it goes through the stages with them.
  UpdateResult offer(const UpdateClaim& claim, std::span<const Digest> claimed);
  /// All ranks, once they have agreed on PREPARE, which began with `watch`: the other stages.
  UpdateResult run(const UpdateClaim& claim, std::span<const Digest> claimed, Stopwatch& watch);
};

}  // namespace weightcast
