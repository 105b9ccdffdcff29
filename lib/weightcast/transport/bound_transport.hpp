#pragma once

#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// What all transports have in common: the kind of memory of their ranks, and what attach() binds them to.
class BoundTransport : public Transport {
 public:
  std::string_view name() const noexcept final { return name_; }
  std::optional<std::string> probe(const Peers& peers, int rank, int other) const final {
    for (const int each : {rank, other}) {
      if (!takes(peers, each)) return why_not(memory_);
    }
    return refuse(peers, rank, other);
  }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) final {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    bind(deadline);
  }
  void run(const Batch& batch, Deadline deadline) final {
    egress_bytes_ = 0;
    move(batch, deadline);
  }
  Traffic traffic() const noexcept final { return {egress_bytes_, staging_bytes()}; }

  /// In words: the weights are not there.
  static std::string why_not(MemoryKind memory) {
    return memory == MemoryKind::host ? "the weights are not in host memory" : "the weights are not in device memory";
  }

 protected:
  BoundTransport(std::string_view name, MemoryKind memory) : name_(name), memory_(memory) {}

  /// See Transport: probe() of two ranks with the right memory, attach() and run().
  virtual std::optional<std::string> refuse(const Peers& /*peers*/, int /*rank*/, int /*other*/) const { return {}; }
  /// Whether the weights of a rank are in memory that it can move them from or to.
  virtual bool takes(const Peers& peers, int rank) const { return peers.place(rank).placement.kind == memory_; }
  virtual void bind(Deadline deadline) = 0;
  virtual void move(const Batch& batch, Deadline deadline) = 0;
  virtual std::uint64_t staging_bytes() const noexcept { return 0; }

  std::byte* source(const Batch& batch) const { return endpoints_->sources.at(batch.source_index)->region().data; }
  /// Of a trainer rank.
  std::size_t trainer_rank() const noexcept { return static_cast<std::size_t>(peers_->rank()); }
  std::byte* sink(const Batch& batch) const { return endpoints_->sinks.at(batch.sink_index).data; }
  /// A trainer rank, where the others do the moving: all the work that there is.
  static void work(const Batch& batch) {
    while (batch.idle && batch.idle()) {
    }
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  std::uint64_t egress_bytes_ = 0;

 private:
  std::string_view name_;
  MemoryKind memory_;
};

// All that there are, for the registry.

/// One host, see direct.hpp. For host memory: engines copy.
std::unique_ptr<Transport> make_direct_host();
/// For engines in device memory: they queue copies on their GPU, contiguous segments by copy engine, strided ones by a
/// kernel. Across a link the GPU that has it pushes half of each part into their slots meanwhile: two copy engines hide
/// each other's page walks. What a trainer rank on the same GPU sends, one kernel copies and digests in the same pass,
/// where the batch wants digests. From a trainer rank in host memory they pull at the speed of the bus.
std::unique_ptr<Transport> make_direct_gpu();

/// Host memory, any hosts, exact shards: each leaves its trainer rank once for each tp rank; with dp > 1 a replica
/// passes what arrives on to the next one. Contiguous shards are sent from where they are, strided ones through bounded
/// pack buffers. Small ones that are neighbours in the slot share a message.
std::unique_ptr<Transport> make_mpi_sharded();

/// Host memory, any hosts, the seed's way: MPI broadcasts every piece to everybody, engines slice on arrival.
std::unique_ptr<Transport> make_mpi_broadcast();

/// Device memory, any hosts, one GPU for each rank, over NCCL.
/// sharded: what a trainer rank has of a shard is broadcast once over it and the engine ranks that hold the shard (one
/// for each replica), by a communicator for each tp rank and trainer rank that meet: contiguous segments from where
/// they are, strided ones through a bounded pack buffer that is filled while the one before is on its way. broadcast:
/// the seed's way, every piece to everybody, sliced on arrival. Error(config) on builds without NCCL.
std::unique_ptr<Transport> make_nccl_sharded();
std::unique_ptr<Transport> make_nccl_broadcast();

}  // namespace weightcast
