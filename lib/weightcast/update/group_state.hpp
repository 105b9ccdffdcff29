#pragma once

#include <memory>
#include <optional>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/update/offer.hpp"
#include "weightcast/update/participant.hpp"
#include "weightcast/update/update_group.hpp"

namespace weightcast {

/// An update whose parameters are arriving.
struct OpenUpdate {
  std::uint64_t version = 0;
  std::size_t missing = 0;  ///< parameters
};

struct UpdateGroup::State {
  const TransferPlan* plan = nullptr;
  std::optional<DeltaPlan> deltas;  // when they were asked for, and are possible
  GroupOptions options;
  Communicator group, replica, trainers;  // the last on trainer ranks, of all of them
  std::optional<Offers> offers;
  Peers peers;
  std::unique_ptr<Participant> end;
  /// What moves one kind of payload.
  struct Mover {
    std::unique_ptr<Transport> transport;
    const TransferPlan* plan = nullptr;
    const Endpoints* endpoints = nullptr;
    Method method = Method::sharded;
    bool failed = false;  // the same on all ranks
  };
  Mover dense, delta;                               // the latter with deltas only
  std::vector<std::unique_ptr<Transport>> retired;  // failed ones: see Transport::run()
  bool lost = false;                                // a rank is out of reach
  std::string transport_notes;
  double init_s = 0, warmup_s = 0;

  std::optional<OpenUpdate> open;
  std::vector<bool> arrived;   // of the open update, by parameter
  std::vector<Digest> sent;    // exchange buffer: shard digests of all tp ranks for one call, then the model's
  HeldVersion last, previous;  // what was committed, and what before
  std::optional<Digest> had, had_before;  // of what this trainer rank had of these, when it was claimed

  Deadline deadline() const noexcept { return Deadline::after(options.timeout_s); }

  /// Attaches the named transport, or the first that all ranks can use, and notes why others were passed over.
  void choose_transport();
  /// Makes a transport of that name for what moves so.
  void attach(Mover& mover, std::string_view name);
  /// What was attached and may be run: a fresh one in place of one that failed.
  Transport& ready(Mover& mover);
  /// Moves the first parameters once into the spare slots, on GPUs all of them, so that connections, buffers and
  /// mappings are ready before the first update.
  void warm_up();

  // The transaction, in transaction.cpp.
  /// Of this plan, with nothing else said yet.
  UpdateClaim claim(std::uint64_t base_version, std::uint64_t version) const;
  /// Holds a claim against what this rank knows. Local.
  void prepare(const UpdateClaim& claim, Deadline deadline);
  /// A trainer rank's publish() or roll_back(): rank 0 offers, the others hold what it offers against what they were
  /// asked for; then all go through the stages.
  UpdateResult begin(UpdateClaim claim, const SourceClaim* claimed);
  /// Rank 0: offers the claim, and when all have taken it goes through the stages with them.
  UpdateResult offer(const UpdateClaim& claim, const SourceClaim* claimed);
  /// All others: waits for an offer, see UpdateGroup::receive().
  std::optional<UpdateResult> accept(Deadline wait, FunctionRef<void(const UpdateClaim&)> check,
                                     FunctionRef<bool()> give_up, const SourceClaim* claimed);
  /// All ranks, once they have agreed on PREPARE, which began with `watch`: the other stages.
  UpdateResult run(const UpdateClaim& claim, const SourceClaim* claimed, Stopwatch& watch);
  void run_weights(const UpdateClaim& claim, const SourceClaim* claimed, Stopwatch& watch, UpdateResult& result);
  /// How many parts of the delta move, or nothing when somebody cannot: then it is all bytes. Collective.
  std::optional<std::size_t> agree_on_delta(const UpdateClaim& claim);
  /// VERIFY of weights, and the VOTE over it.
  void prove(const UpdateClaim& claim, bool completes, Stopwatch& watch, UpdateResult& result);
  void run_rollback(const UpdateClaim& claim, Stopwatch& watch, UpdateResult& result);
  void abort() noexcept;
};

}  // namespace weightcast
