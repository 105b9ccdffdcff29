#include "weightcast/verify/shard_digests.hpp"

#include <algorithm>

namespace weightcast {
namespace {

constexpr std::uint64_t step_bytes = 2 * 1024 * 1024;
constexpr std::size_t steps_per_thread = 8;  // less is not worth waking one

/// `base` is where row 0 of the shard is and `pitch` the bytes from row to row there.
Digest digest_part(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter, const std::byte* base,
                   std::uint64_t pitch, std::uint64_t first, std::uint64_t size_bytes) noexcept {
  const auto& shard = plan.ranks[tp_rank].shards[parameter];
  const auto offset = plan.offset_in_parameter(tp_rank, parameter);
  if (shard.contiguous_source() && (pitch == shard.row_bytes || shard.rows <= 1))
    return digest_bytes({base + first, size_bytes}, offset + first);
  return digest_rows(base, pitch, shard.row_bytes, first / shard.row_bytes, size_bytes / shard.row_bytes, offset,
                     shard.source_pitch);
}

}  // namespace

Digest digest_of_shard_part(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter, const std::byte* slot,
                            std::uint64_t first, std::uint64_t size_bytes) noexcept {
  const auto& shard = plan.ranks[tp_rank].shards[parameter];
  return digest_part(plan, tp_rank, parameter, slot + shard.destination, shard.destination_pitch, first, size_bytes);
}

Digest digest_of_shard(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter,
                       const std::byte* slot) noexcept {
  return digest_of_shard_part(plan, tp_rank, parameter, slot, 0, plan.ranks[tp_rank].shards[parameter].size_bytes());
}

SourceDigests::SourceDigests(const TransferPlan& plan, std::size_t threads)
    : plan_(&plan), table_(plan.ranks.size() * plan.model.parameters.size()) {
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    first_step_.push_back(steps_.size());
    for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
      const auto& shard = plan.ranks[t].shards[p];
      if (plan.copy(t, p) || shard.size_bytes() == 0) continue;
      const auto rows = shard.contiguous_source() ? 1 : shard.row_bytes;  // a strided shard is cut between rows
      const auto step = std::max<std::uint64_t>(step_bytes / rows, 1) * rows;
      for (std::uint64_t first = 0; first < shard.size_bytes(); first += step) {
        steps_.push_back({t, p, first, std::min(step, shard.size_bytes() - first)});
      }
    }
    // Column shards of the same rows lie in the same pages: one after the other.
    std::ranges::stable_sort(steps_.begin() + static_cast<std::ptrdiff_t>(first_step_.back()), steps_.end(), {},
                             &Step::first);
  }
  first_step_.push_back(steps_.size());
  threads = std::min(threads, steps_.size() / steps_per_thread);
  if (threads > 1) workers_.emplace(threads - 1);
}

void SourceDigests::begin(const std::byte* source, std::size_t first, std::size_t count) noexcept {
  source_ = source;
  next_ = first_step_[first];
  end_ = first_step_[first + count];
  for (std::size_t t = 0; t < plan_->ranks.size(); ++t) {
    for (std::size_t p = first; p < first + count; ++p) set(t, p, Digest{});
  }
}

bool SourceDigests::work() noexcept {
  const auto index = next_.fetch_add(1);
  if (index >= end_) return false;
  const auto& [tp_rank, parameter, first, size_bytes] = steps_[index];
  const auto& shard = plan_->ranks[tp_rank].shards[parameter];
  const auto part =
      digest_part(*plan_, tp_rank, parameter, source_ + shard.source, shard.source_pitch, first, size_bytes);
  auto& digest = table_[tp_rank * plan_->model.parameters.size() + parameter];
  std::atomic_ref(digest.first) += part.first;
  std::atomic_ref(digest.second) += part.second;
  return true;
}

void SourceDigests::finish() noexcept {
  const auto work_off = [&] {
    while (work()) {
    }
  };
  const auto left = end_ - std::min(next_.load(), end_);
  if (workers_ && left >= 2 * steps_per_thread) return workers_->run(work_off);
  work_off();
}

Digest SourceDigests::shard(std::size_t tp_rank, std::size_t parameter) const noexcept {
  while (plan_->copy(tp_rank, parameter)) --tp_rank;  // copies follow what they copy
  return table_[tp_rank * plan_->model.parameters.size() + parameter];
}

Digest SourceDigests::parameter(std::size_t parameter) const noexcept {
  Digest sum;
  for (std::size_t t = 0; t < plan_->ranks.size(); ++t) {
    if (!plan_->copy(t, parameter)) sum += shard(t, parameter);
  }
  return sum;
}

}  // namespace weightcast
