#include "weightcast/update/witnesses.hpp"

#include <algorithm>
#include <exception>

#include "weightcast/core/parallel.hpp"
#include "weightcast/verify/gpu_digests.hpp"

namespace weightcast {
namespace {

class HostSlotWitness final : public SlotWitness, public Observer {
 public:
  HostSlotWitness(const TransferPlan& plan, std::size_t tp_rank)
      : SlotWitness(plan), shards_(plan.ranks[tp_rank].shards) {}

  void begin(const Region& slot, Batch& batch) override {
    slot_ = slot.data;
    const auto& [first, count] = batch.parameters;
    std::fill_n(digests_.begin() + static_cast<std::ptrdiff_t>(first), count, Digest{});
    batch.observer = this;
  }
  void landed(const Shard& block) noexcept override {
    digests_[block.parameter_index] += digest_of_shard(block, slot_);
  }
  void finish(Deadline) override {}
  void digest(const Region& slot, Deadline) override {
    parallel_for(digests_.size(), available_cores(),
                 [&](std::size_t p) { digests_[p] = digest_of_shard(shards_[p], slot.data); });
  }
  void digest_beside(const Region& slot, Deadline deadline) override {
    for (std::size_t p = 0; p < digests_.size(); ++p) {
      if (deadline.passed()) {
        throw Error(ExitCode::deadline, fmt::format("{} of {} shards were digested in time", p, digests_.size()),
                    "give it more time with --timeout");
      }
      digests_[p] = digest_of_shard(shards_[p], slot.data);
    }
  }

 private:
  std::span<const Shard> shards_;
  const std::byte* slot_ = nullptr;
};

class GpuSlotWitness final : public SlotWitness, public GpuObserver {
 public:
  GpuSlotWitness(const TransferPlan& plan, std::size_t tp_rank, int gpu)
      : SlotWitness(plan), schedule_(plan.ranks[tp_rank].schedule), gpu_(GpuDigests::of_slot(plan, tp_rank, gpu)) {}

  void begin(const Region& slot, Batch& batch) override {
    begin(slot, batch.parameters);
    target_ = gpu_.target();
    batch.gpu_observer = this;
    batch.digests = &target_;
  }
  void landed(const gpu::Stream& stream, const Part& part) noexcept override {
    try {
      const bool last = ++announced_ == parts_;
      gpu_.queue(part.segments, last ? gpu::Share::all : gpu::Share::half, &stream);
      if (last) gpu_.fetch();  // while the ranks agree on STAGE
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  void finish(Deadline deadline) override {
    if (error_) std::rethrow_exception(error_);
    const auto results = gpu_.finish(deadline).subspan(parameters_.first, parameters_.count);
    std::ranges::copy(results, digests_.begin() + static_cast<std::ptrdiff_t>(parameters_.first));
  }
  void digest(const Region& slot, Deadline deadline) override { digest(slot, gpu::Share::all, deadline); }
  void digest_beside(const Region& slot, Deadline deadline) override { digest(slot, gpu::Share::half, deadline); }

 private:
  void digest(const Region& slot, gpu::Share share, Deadline deadline) {
    begin(slot, {0, digests_.size()});
    gpu_.queue({0, schedule_.segments.size()}, share, nullptr);
    finish(deadline);
  }
  void begin(const Region& slot, const Range& parameters) {
    parameters_ = parameters;
    parts_ = schedule_.parts(parameters).size();
    announced_ = 0;
    error_ = nullptr;
    gpu_.begin(slot.data);
  }

  const Schedule& schedule_;
  Range parameters_;
  std::size_t parts_ = 0, announced_ = 0;  // of them
  GpuDigests gpu_;
  gpu::DigestTarget target_;
  std::exception_ptr error_;  // of landed(), which may not throw
};

class HostSourceWitness final : public SourceWitness {
 public:
  HostSourceWitness(const TransferPlan& plan, std::size_t trainer_rank, bool crowded)
      : crowded_(crowded), digests_(plan, available_cores(), trainer_rank) {}

  void begin(const Region& source, Batch& batch) override {
    digests_.begin(source.data, batch.parameters);
    if (!crowded_) batch.idle = *this;
  }
  /// A piece of work.
  bool operator()() noexcept { return digests_.work(); }
  void finish(Deadline) override { digests_.finish(); }
  const SourceClaim& claim() const noexcept override { return digests_.claim(); }

 private:
  bool crowded_;
  SourceDigests digests_;
};

class GpuSourceWitness final : public SourceWitness {
 public:
  GpuSourceWitness(const TransferPlan& plan, std::size_t trainer_rank, int gpu, bool crowded)
      : crowded_(crowded), gpu_(GpuDigests::of_source(plan, gpu, trainer_rank)), claim_(plan, trainer_rank) {}

  void begin(const Region& source, Batch& batch) override {
    parameters_ = batch.parameters;
    gpu_.begin(source.data);
    if (!crowded_) gpu_.queue(parameters_, gpu::Share::half, nullptr);
  }
  void finish(Deadline deadline) override {
    if (crowded_) gpu_.queue(parameters_, gpu::Share::all, nullptr);
    const auto results = gpu_.finish(deadline);
    for (auto p = parameters_.first; p < parameters_.end(); ++p) {
      claim_.forget(p);
      claim_.add(p, results);
    }
  }
  const SourceClaim& claim() const noexcept override { return claim_; }

 private:
  bool crowded_;
  Range parameters_;
  GpuDigests gpu_;
  SourceClaim claim_;
};

}  // namespace

std::unique_ptr<SlotWitness> make_slot_witness(const TransferPlan& plan, std::size_t tp_rank, Placement placement) {
  if (placement.kind == MemoryKind::host) return std::make_unique<HostSlotWitness>(plan, tp_rank);
  return std::make_unique<GpuSlotWitness>(plan, tp_rank, placement.gpu);
}

std::unique_ptr<SourceWitness> make_source_witness(const TransferPlan& plan, std::size_t trainer_rank,
                                                   Placement placement, bool crowded) {
  if (placement.kind == MemoryKind::host) return std::make_unique<HostSourceWitness>(plan, trainer_rank, crowded);
  return std::make_unique<GpuSourceWitness>(plan, trainer_rank, placement.gpu, crowded);
}

}  // namespace weightcast
