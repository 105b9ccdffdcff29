#pragma once

#include "weightcast/comm/message.hpp"
#include "weightcast/transport/transport.hpp"

/// One host: engines map the trainer ranks' weights and pull their segments straight into their slot. No staging. With
/// dp > 1 only the first replica pulls from the trainer; a later one pulls, part by part as they arrive, from the slots
/// of the replica before it, so that each shard leaves the trainer once.
namespace weightcast {

/// Why direct cannot serve these two ranks, whatever their memory, or nothing.
std::optional<std::string> refuse_direct(const Peers& peers, int rank, int other);

/// Handles as mapped from that GPU, or on the host.
std::vector<Mapping> map_all(std::span<const ShareHandle> handles, int gpu);

/// The regions of all ranks of `group` that have any, as this rank sees them: every rank tells the others how to map
/// its `sources`, and maps from `gpu`, or on the host, those that it has `wanted`. By rank; empty for others and for
/// itself. Collective; may throw on one rank only.
std::vector<std::vector<Mapping>> map_sources(const Communicator& group, const std::vector<const Buffer*>& sources,
                                              int gpu, FunctionRef<bool(int rank)> wanted, Deadline deadline);

/// Where an engine rank pulls from, and whom it tells what has arrived.
class Upstream {
 public:
  /// Collective over the group; may throw on one rank only.
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline);

  // On engines.
  /// By which this rank pulls: its own from the trainer, or as it is passed on.
  const Schedule& schedule() const noexcept { return *schedule_; }
  /// The rank that a part is pulled from, and its memory.
  int sender(const Cut& part) const noexcept { return before_ >= 0 ? before_ : static_cast<int>(part.from); }
  const std::byte* base(const Batch& batch, const Cut& part) const;
  /// The same tp rank of the next replica, which waits for the parts; or -1.
  int next() const noexcept { return next_; }

  /// Between those who have to speak; none where nobody has.
  const Communicator& comm() const noexcept { return comm_; }
  /// By which a rank's sinks are mapped, if it has told the others.
  const std::vector<ShareHandle>& sinks_of(int rank) const { return sinks_.at(static_cast<std::size_t>(rank)); }

  /// Starts a run of `parts` parts, pulled and announced in this order.
  void begin(std::size_t parts);
  /// Whether part `part` can be pulled now; polls.
  bool ready(std::size_t part);
  /// Tells the next replica, if there is one, that one more part is in this rank's sink.
  void announce();
  /// Waits until all announcements have left.
  void finish(Deadline deadline);

 private:
  std::vector<std::vector<Mapping>> sources_;    // by rank
  std::vector<Mapping> slots_;                   // of the replica before
  std::vector<std::vector<ShareHandle>> sinks_;  // by rank
  const Schedule* schedule_ = nullptr;
  Communicator comm_;  // of its own, so that no message outlives a failed run; with dp > 1 or on GPUs
  int before_ = -1, next_ = -1;
  std::size_t arrived_ = 0, announced_ = 0;
  std::optional<Message> incoming_;
  std::vector<Message> outgoing_;
};

}  // namespace weightcast
