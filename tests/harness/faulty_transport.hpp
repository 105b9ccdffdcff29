#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
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
  /// How long the other ranks wait, in seconds, for a movement that this rank does not take part in to the end.
  double patience_s = 0.3;

  bool leaves_others_waiting() const {
    return kind == Kind::throw_before || kind == Kind::no_memory || kind == Kind::throw_first ||
           kind == Kind::throw_midway || kind == Kind::too_late;
  }
  bool strikes(int rank) const { return std::find(ranks.begin(), ranks.end(), rank) != ranks.end(); }
};

/// Sits between the transport and who digests what arrives.
class FaultyWitness final : public Witness {
 public:
  FaultyWitness(Witness* inner, const Fault& fault, const Region& slot, const TransferPlan& plan, std::size_t tp_rank)
      : inner_(inner), fault_(&fault), slot_(slot), source_bytes_(plan.source_bytes), plan_(&plan.ranks[tp_rank]) {}

  void landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept override {
    if (parameter == fault_->parameter && fault_->byte >= first && fault_->byte - first < size_bytes) flip();
    if (!unseen()) inner_->landed(parameter, first, size_bytes);
  }
  void landed_on(const gpu::Stream& stream, std::size_t first, std::size_t count) noexcept override {
    if (fault_->parameter >= first && fault_->parameter - first < count) {
      stream.synchronize(Deadline::after(20), "a test");
      flip();
    }
    if (!unseen()) inner_->landed_on(stream, first, count);
  }
  bool copy_on(gpu::Stream& stream, const std::byte* source, std::size_t first, std::size_t count) noexcept override {
    if (fault_->kind == Fault::Kind::unseen) return false;
    // Nothing comes between the copy and the look at it, so what it copies is another source, with the bit flipped.
    auto original = slot_;
    original.data = const_cast<std::byte*>(source);  // NOLINT: only read
    original.size_bytes = source_bytes_;
    faulty_source_ = Buffer::allocate({slot_.kind, slot_.gpu}, source_bytes_, false, "a test");
    write_region(faulty_source_.region(), 0, HostView(original).bytes());
    const auto& shard = plan_->shards[fault_->parameter];
    flip(faulty_source_.region(),
         shard.source + fault_->byte / shard.row_bytes * shard.source_pitch + fault_->byte % shard.row_bytes);
    return inner_->copy_on(stream, faulty_source_.region().data, first, count);
  }
  bool work() noexcept override { return inner_->work(); }

 private:
  void flip() {
    flip(slot_, plan_->shards[fault_->parameter].destination + fault_->byte);  // shards land packed
  }
  void flip(const Region& memory, std::uint64_t offset) {
    if (fault_->kind != Fault::Kind::bit_flip) return;
    std::byte value{};
    read_region(memory, offset, {&value, 1});
    value ^= static_cast<std::byte>(1 << fault_->bit);
    write_region(memory, offset, {&value, 1});
  }
  bool unseen() { return fault_->kind == Fault::Kind::unseen && !std::exchange(missed_, true); }

  Witness* inner_;
  const Fault* fault_;
  Region slot_;
  std::uint64_t source_bytes_;
  const RankPlan* plan_;
  Buffer faulty_source_;  // until the copy is done
  bool missed_ = false;
};

class FaultyTransport final : public Transport {
 public:
  /// `fault` must outlive it.
  FaultyTransport(std::unique_ptr<Transport> inner, const Fault& fault) : inner_(std::move(inner)), fault_(&fault) {}

  std::string_view name() const noexcept override { return inner_->name(); }
  std::optional<std::string> probe(const Peers& peers) const override { return inner_->probe(peers); }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    inner_->attach(peers, plan, endpoints, deadline);
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }
  void release_cache() noexcept override { inner_->release_cache(); }

  void run(const Batch& batch, Deadline deadline) override {
    using Kind = Fault::Kind;
    if (fault_->kind == Kind::none) return inner_->run(batch, deadline);
    if (!fault_->strikes(peers_->group->rank()))
      return inner_->run(batch, fault_->leaves_others_waiting() ? Deadline::after(fault_->patience_s) : deadline);
    auto part = batch;
    switch (fault_->kind) {
      case Kind::none: break;
      case Kind::throw_before: part.parameters = 0; break;
      case Kind::no_memory: throw std::bad_alloc();
      case Kind::throw_first: part.parameters = 1; break;
      case Kind::throw_midway: part.parameters = batch.parameters / 2; break;
      case Kind::throw_after: break;
      case Kind::too_late:
        inner_->run(batch, Deadline::after(0));
        fail(ExitCode::deadline, "injected: the movement took too long");
      case Kind::nothing_moved: return;
      case Kind::bit_flip:
      case Kind::unseen:
        FaultyWitness witness(batch.witness, *fault_, endpoints_->sinks[batch.sink], *plan_, peers_->tp_rank());
        part.witness = &witness;
        return inner_->run(part, deadline);
    }
    try {
      // A rank that does less than the others may itself wait for what they never send.
      const bool partly = part.parameters < batch.parameters;
      if (part.parameters > 0) inner_->run(part, partly ? Deadline::after(fault_->patience_s) : deadline);
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the injected one is what counts
    }
    throw Error(ExitCode::unavailable, "injected: the movement broke", "take the fault away");
  }

 private:
  std::unique_ptr<Transport> inner_;
  const Fault* fault_;
  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
};

/// For UpdateRig: puts the decorator around every transport.
inline std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)> injecting(const Fault& fault) {
  return
      [&fault](std::unique_ptr<Transport> inner) { return std::make_unique<FaultyTransport>(std::move(inner), fault); };
}

}  // namespace weightcast::testing_harness
