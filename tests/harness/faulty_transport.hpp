#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "weightcast/transport/transport.hpp"

/// Faults injected at the transport seam, by decorating what moves the bytes and what sees them arrive.
namespace weightcast::testing_harness {

/// What goes wrong in the next movements, and on which ranks. The same on all ranks, changed between updates only.
struct Fault {
  enum class Kind : std::uint8_t {
    none,
    throw_before,   ///< the rank takes no part
    no_memory,      ///< nor here: an allocation fails
    throw_first,    ///< breaks after the first parameter
    throw_midway,   ///< after half of the parameters
    throw_after,    ///< when everything has moved
    too_late,       ///< its time is up
    nothing_moved,  ///< engine: says that all went well, and has moved nothing
    bit_flip,       ///< engine: one bit of what arrives, before anybody looks at it
    unseen,         ///< engine: a piece is not announced, so that the rank cannot vouch for bytes that are right
  };
  Kind kind = Kind::none;
  std::vector<int> ranks;
  /// Of a bit_flip: a byte of the packed shard of a parameter.
  std::size_t parameter = 0;
  std::uint64_t byte = 0;
  int bit = 0;
  /// On GPUs: let none digest what it copies within one GPU, but all announce it.
  bool announced = false;
  /// How long the other ranks wait, in seconds, for a movement that this rank does not take part in to the end.
  double patience_s = 0.3;

  bool leaves_others_waiting() const {
    return kind == Kind::throw_before || kind == Kind::no_memory || kind == Kind::throw_first ||
           kind == Kind::throw_midway || kind == Kind::too_late;
  }
  bool strikes(int rank) const { return std::find(ranks.begin(), ranks.end(), rank) != ranks.end(); }
};

inline void flip_bit(const Region& memory, std::uint64_t offset, int bit) {
  std::byte value{};
  read_region(memory, offset, {&value, 1});
  value ^= static_cast<std::byte>(1 << bit);
  write_region(memory, offset, {&value, 1});
}

/// Sits between the transport and who digests what arrives.
class FaultyObserver final : public Observer, public GpuObserver {
 public:
  FaultyObserver(const Batch& batch, const Fault& fault, const Region& slot, const RankPlan& plan)
      : inner_(batch.observer),
        inner_gpu_(batch.gpu_observer),
        fault_(&fault),
        slot_(slot),
        schedule_(&plan.schedule),
        // Shards land packed.
        at_(plan.shards[fault.parameter].destination_offset + fault.byte) {}

  void landed(const Shard& block) noexcept override {
    if (at_ >= block.destination_offset && at_ - block.destination_offset < block.size_bytes()) flip();
    if (!unseen()) inner_->landed(block);
  }
  void landed(const gpu::Stream& stream, const Part& part) noexcept override {
    for (const auto& segment : part.segments.of(schedule_->segments)) {
      if (at_ < segment.destination_offset || at_ - segment.destination_offset >= segment.size_bytes()) continue;
      stream.synchronize(Deadline::after(20), "a test");
      flip();
    }
    if (!unseen()) inner_gpu_->landed(stream, part);
  }

 private:
  void flip() {
    if (fault_->kind == Fault::Kind::bit_flip) flip_bit(slot_, at_, fault_->bit);
  }
  bool unseen() { return fault_->kind == Fault::Kind::unseen && !std::exchange(missed_, true); }

  Observer* inner_;
  GpuObserver* inner_gpu_;
  const Fault* fault_;
  Region slot_;
  const Schedule* schedule_;
  std::uint64_t at_;
  bool missed_ = false;
};

class FaultyTransport final : public Transport {
 public:
  using Buffers = std::vector<std::unique_ptr<Buffer>>;
  /// `fault` must outlive it; `buffers` are the trainer's, and those who map them let go first.
  FaultyTransport(std::unique_ptr<Transport> inner, const Fault& fault, std::shared_ptr<Buffers> buffers)
      : inner_(std::move(inner)), fault_(&fault), buffers_(std::move(buffers)) {}

  std::string_view name() const noexcept override { return inner_->name(); }
  std::optional<std::string> probe(const Peers& peers, int rank, int other) const override {
    return inner_->probe(peers, rank, other);
  }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = endpoints;
    // On GPUs a copy that digests leaves nothing in between for a fault: what it copies is another source.
    sources_ = peers.group->max(endpoints.sources.size(), deadline);
    if (peers.trainer() && peers.placement().kind == MemoryKind::cuda) {
      buffers_->push_back(std::make_unique<Buffer>(
          Buffer::allocate(peers.placement(), plan.source_bytes(), true, "a source with a fault")));
      endpoints_.sources.push_back(buffers_->back().get());
    }
    inner_->attach(peers, plan, endpoints_, deadline);
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }
  void release_cache() noexcept override { inner_->release_cache(); }

  void run(const Batch& batch, Deadline deadline) override {
    using Kind = Fault::Kind;
    if (fault_->kind == Kind::none) return inner_->run(batch, deadline);
    if (fault_->kind == Kind::bit_flip) prepare_source(batch, deadline);
    if (!fault_->strikes(peers_->group->rank()))
      return inner_->run(batch, fault_->leaves_others_waiting() ? Deadline::after(fault_->patience_s) : deadline);
    auto part = batch;
    switch (fault_->kind) {
      case Kind::none: break;
      case Kind::throw_before: part.parameters.count = 0; break;
      case Kind::no_memory: throw std::bad_alloc();
      case Kind::throw_first: part.parameters.count = 1; break;
      case Kind::throw_midway: part.parameters.count = batch.parameters.count / 2; break;
      case Kind::throw_after: break;
      case Kind::too_late:
        inner_->run(batch, Deadline::after(0));
        fail(ExitCode::deadline, "injected: the movement took too long");
      case Kind::nothing_moved: return;
      case Kind::bit_flip:
      case Kind::unseen:
        if (fault_->announced || fault_->kind == Kind::unseen) part.digests = nullptr;
        if (digests_copies(part)) {
          part.source_index = sources_;
          return inner_->run(part, deadline);
        }
        FaultyObserver observer(part, *fault_, endpoints_.sinks[batch.sink_index], plan_->ranks[peers_->tp_rank()]);
        if (part.observer != nullptr) part.observer = &observer;
        if (part.gpu_observer != nullptr) part.gpu_observer = &observer;
        return inner_->run(part, deadline);
    }
    try {
      // A rank that does less than the others may itself wait for what they never send.
      const bool partly = part.parameters.count < batch.parameters.count;
      if (part.parameters.count > 0) inner_->run(part, partly ? Deadline::after(fault_->patience_s) : deadline);
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the injected one is what counts
    }
    throw Error(ExitCode::unavailable, "injected: the movement broke", "take the fault away");
  }

 private:
  /// Whether this engine digests what it copies within its GPU, as `direct` does beside the trainer.
  bool digests_copies(const Batch& batch) const {
    return batch.digests != nullptr && inner_->name() == "direct" && plan_->dp == 1 &&
           same_gpu(peers_->place(0), peers_->place(peers_->rank()));
  }

  /// The trainer makes the source with the bit flipped, before anybody copies it.
  void prepare_source(const Batch& batch, Deadline deadline) {
    if (peers_->placement().kind != MemoryKind::cuda) return;
    if (peers_->trainer()) {
      const auto copy = endpoints_.sources.back()->region();
      write_region(copy, 0, HostView(endpoints_.sources[batch.source_index]->region()).bytes());
      std::set<std::uint64_t> places;  // ranks that share a shard have one
      for (const int rank : fault_->ranks) {
        const auto& shard = plan_->ranks[peers_->roster.tp_rank(rank)].shards[fault_->parameter];
        const auto row = fault_->byte / shard.row_bytes, column = fault_->byte % shard.row_bytes;
        places.insert(shard.parameter_offset + row * shard.parameter_pitch + column);
      }
      for (const auto place : places) flip_bit(copy, plan_->source_offset(fault_->parameter) + place, fault_->bit);
    }
    peers_->group->barrier(deadline);
  }

  std::unique_ptr<Transport> inner_;
  const Fault* fault_;
  std::shared_ptr<Buffers> buffers_;
  std::size_t sources_ = 0;  // without the one with a fault
  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  Endpoints endpoints_;
};

/// For UpdateRig: puts the decorator around every transport.
inline std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)> injecting(const Fault& fault) {
  return [&fault, buffers = std::make_shared<FaultyTransport::Buffers>()](std::unique_ptr<Transport> inner) {
    return std::make_unique<FaultyTransport>(std::move(inner), fault, buffers);
  };
}

}  // namespace weightcast::testing_harness
