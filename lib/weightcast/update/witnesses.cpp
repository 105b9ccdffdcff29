#include "weightcast/update/witnesses.hpp"

#include <algorithm>

#include "weightcast/core/parallel.hpp"

namespace weightcast {

SlotWitness::SlotWitness(const TransferPlan& plan, std::size_t tp_rank, Placement placement)
    : plan_(&plan), tp_rank_(tp_rank), digests_(plan.model.parameters.size()) {
  if (placement.kind == MemoryKind::cuda) gpu_.emplace(GpuDigests::of_slot(plan, tp_rank, placement.gpu));
}

void SlotWitness::begin(const Region& slot, std::size_t first, std::size_t count) {
  slot_ = slot.data;
  first_ = first;
  count_ = count;
  error_ = nullptr;
  std::fill_n(digests_.begin() + static_cast<std::ptrdiff_t>(first), count, Digest{});
  if (gpu_) gpu_->begin(slot.data);
}

void SlotWitness::landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept {
  digests_[parameter] += digest_of_shard_part(*plan_, tp_rank_, parameter, slot_, first, size_bytes);
}

void SlotWitness::landed_on(const gpu::Stream& stream, std::size_t first, std::size_t count) noexcept {
  try {
    gpu_->queue(first, count, &stream);
  } catch (...) {
    error_ = std::current_exception();
  }
}

bool SlotWitness::copy_on(gpu::Stream& stream, const std::byte* source, std::size_t first, std::size_t count) noexcept {
  try {
    gpu_->copy(first, count, source, slot_, stream);
  } catch (...) {
    error_ = std::current_exception();
  }
  return true;
}

void SlotWitness::finish(Deadline deadline) {
  if (error_) std::rethrow_exception(error_);
  if (!gpu_) return;
  const auto results = gpu_->finish(deadline).subspan(first_, count_);
  std::copy(results.begin(), results.end(), digests_.begin() + static_cast<std::ptrdiff_t>(first_));
}

std::span<const Digest> SlotWitness::digest(const Region& slot, Deadline deadline) {
  begin(slot, 0, digests_.size());
  if (gpu_) {
    gpu_->queue(0, digests_.size(), nullptr);
  } else {
    parallel_for(digests_.size(), available_cores(),
                 [&](std::size_t p) { digests_[p] = digest_of_shard(*plan_, tp_rank_, p, slot.data); });
  }
  finish(deadline);
  return digests_;
}

SourceWitness::SourceWitness(const TransferPlan& plan, Placement placement, bool crowded)
    : plan_(&plan), crowded_(crowded), digests_(plan, placement.kind == MemoryKind::host ? available_cores() : 1) {
  if (placement.kind == MemoryKind::cuda) gpu_.emplace(GpuDigests::of_source(plan, placement.gpu));
}

void SourceWitness::begin(const Region& source, std::size_t first, std::size_t count) {
  first_ = first;
  count_ = count;
  if (!gpu_) return digests_.begin(source.data, first, count);
  gpu_->begin(source.data);
  if (!crowded_) gpu_->queue(first, count, nullptr);
}

bool SourceWitness::work() noexcept {
  return !gpu_ && !crowded_ && digests_.work();
}

void SourceWitness::finish(Deadline deadline) {
  if (!gpu_) return digests_.finish();
  if (crowded_) gpu_->queue(first_, count_, nullptr);
  const auto results = gpu_->finish(deadline);
  const auto parameters = plan_->model.parameters.size();
  for (std::size_t p = first_; p < first_ + count_; ++p) {
    for (std::size_t t = 0; t < plan_->tp; ++t) {
      digests_.set(t, p, results[t * parameters + p]);
    }
  }
}

}  // namespace weightcast
