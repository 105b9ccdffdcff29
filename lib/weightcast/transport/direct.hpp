#pragma once

#include "weightcast/transport/transport.hpp"

/// One host: engines map the trainer's weights and pull their segments straight into their slot. No staging. With
/// dp > 1 only the first replica pulls from the trainer; a later one pulls, part by part as they arrive, from the slots
/// of the replica before it, so that each shard leaves the trainer once.
namespace weightcast {

/// For host memory: engines copy.
std::unique_ptr<Transport> make_direct_host();
/// For device memory: engines queue copies on their GPU, contiguous segments by copy engine, strided ones by a kernel.
/// On the trainer's own GPU they leave them to the witness, where there is one: it digests in the same pass.
std::unique_ptr<Transport> make_direct_gpu();

inline std::unique_ptr<Transport> make_direct(MemoryKind memory) {
  return memory == MemoryKind::host ? make_direct_host() : make_direct_gpu();
}

/// The trainer's regions as this rank sees them: the trainer tells all engines how to map them. Collective over the
/// group; may throw on one rank only. Empty on the trainer.
std::vector<Mapping> map_sources(const Peers& peers, const Endpoints& endpoints, Deadline deadline);

/// Where an engine rank pulls from, and whom it tells what has arrived.
class Upstream {
 public:
  /// Collective over the group; may throw on one rank only.
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline);

  /// This rank's shards with `source` and `source_pitch` as they are upstream; indexed like RankPlan::shards.
  const std::vector<Segment>& shards() const noexcept { return shards_; }
  const std::byte* base(const Batch& batch) const;
  /// Of the rank that is pulled from.
  int rank() const noexcept { return from_; }

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
  std::vector<Segment> shards_;
  Communicator comm_;  // of its own, so that no message outlives a failed run; only with dp > 1
  int from_ = -1, to_ = -1;
  std::size_t arrived_ = 0, announced_ = 0;
  MPI_Request incoming_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> outgoing_;
};

}  // namespace weightcast
