#pragma once

#include "weightcast/core/error.hpp"
#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// What all transports have in common: one kind of memory on all ranks, and what attach() binds them to.
class BoundTransport : public Transport {
 public:
  std::string_view name() const noexcept final { return name_; }
  std::optional<std::string> probe(const Peers& peers, int rank, int other) const final {
    for (const int each : {rank, other}) {
      if (peers.place(each).placement.kind != memory_) return why_not(memory_);
    }
    return refuse(peers, rank, other);
  }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) final {
    WEIGHTCAST_EXPECTS(plan.sources.ranks.size() == 1);  // a layout can have more; transports cannot yet
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
  virtual void bind(Deadline deadline) = 0;
  virtual void move(const Batch& batch, Deadline deadline) = 0;
  virtual std::uint64_t staging_bytes() const noexcept { return 0; }

  const RankPlan& rank_plan() const { return plan_->ranks[peers_->tp_rank()]; }
  std::byte* source(const Batch& batch) const { return endpoints_->sources.at(batch.source_index)->region().data; }
  std::byte* sink(const Batch& batch) const { return endpoints_->sinks.at(batch.sink_index).data; }
  /// Trainer, where the others do the moving: all the work that there is.
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

}  // namespace weightcast
