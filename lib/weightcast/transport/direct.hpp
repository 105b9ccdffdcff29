#pragma once

#include "weightcast/comm/message.hpp"
#include "weightcast/transport/transport.hpp"

/// One host: engines map the trainer's weights and pull their segments straight into their slot. No staging. With
/// dp > 1 only the first replica pulls from the trainer; a later one pulls, part by part as they arrive, from the slots
/// of the replica before it, so that each shard leaves the trainer once.
namespace weightcast {

/// Why direct cannot serve these two ranks, whatever their memory, or nothing.
std::optional<std::string> refuse_direct(const Peers& peers, int rank, int other);

/// The trainer's regions as this rank sees them, from its GPU if that is where they are: the trainer, rank 0, tells all
/// engines how to map them. Collective over the group; may throw on one rank only. Empty on the trainer.
std::vector<Mapping> map_sources(const Communicator& group, const std::vector<const Buffer*>& sources, int gpu,
                                 Deadline deadline);

/// Handles as mapped from that GPU, or on the host.
std::vector<Mapping> map_all(std::span<const ShareHandle> handles, int gpu);

/// Where an engine rank pulls from, and whom it tells what has arrived.
class Upstream {
 public:
  /// Collective over the group; may throw on one rank only.
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline);

  /// By which this rank pulls: its own from the trainer, or as it is passed on. On engines.
  const Schedule& schedule() const noexcept { return *schedule_; }
  const std::byte* base(const Batch& batch) const;
  /// Of the rank that is pulled from.
  int rank() const noexcept { return from_; }
  /// Between these two roles; none where nobody needs it.
  const Communicator& comm() const noexcept { return comm_; }
  /// By which a rank's sinks are mapped, if it has told the others.
  const std::vector<ShareHandle>& sinks_of(int rank) const { return sinks_.at(static_cast<std::size_t>(rank)); }

  /// Starts a run of `parts` parts, pulled and announced in this order.
  void begin(std::size_t parts);
  /// Whether part `part` can be pulled now; polls.
  bool ready(std::size_t part);
  /// Whether another replica waits for the parts.
  bool announces() const noexcept { return to_ >= 0; }
  /// Tells it that one more part is in this rank's sink.
  void announce();
  /// Waits until all announcements have left.
  void finish(Deadline deadline);

 private:
  std::vector<Mapping> mappings_;
  std::vector<std::vector<ShareHandle>> sinks_;  // by rank
  const Schedule* schedule_ = nullptr;
  Communicator comm_;  // of its own, so that no message outlives a failed run; with dp > 1 or on GPUs
  int from_ = -1, to_ = -1;
  std::size_t arrived_ = 0, announced_ = 0;
  std::optional<Message> incoming_;
  std::vector<Message> outgoing_;
};

}  // namespace weightcast
