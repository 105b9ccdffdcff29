#include "weightcast/verify/shard_digests.hpp"

#include <algorithm>

namespace weightcast {
namespace {

constexpr std::uint64_t step_bytes = 2 * 1024 * 1024;  // 0.2 ms: so long a wait for MPI may be kept from its poll
constexpr std::size_t steps_per_thread = 8;            // less is not worth waking one

}  // namespace

Digest digest_of_shard(const Shard& shard, const std::byte* slot) noexcept {
  return digest_rows(slot + shard.destination_offset, shard.destination_pitch, shard.row_bytes, shard.rows,
                     shard.parameter_offset, shard.parameter_pitch);
}

SourceDigests::SourceDigests(const TransferPlan& plan, std::size_t threads, std::size_t trainer_rank) : claim_(plan) {
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    first_step_.push_back(steps_.size());
    for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
      if (plan.copy(t, p)) continue;
      for (const auto& segment : plan.ranks[t].schedule.segments_of(trainer_rank, {p, 1})) {
        for (BlockCursor cursor(segment, step_bytes); !cursor.done(); cursor.next())
          steps_.push_back({t, cursor.block()});
      }
    }
    // Column shards of the same rows lie in the same pages: one after the other.
    std::ranges::stable_sort(steps_.begin() + static_cast<std::ptrdiff_t>(first_step_.back()), steps_.end(), {},
                             [](const Step& step) { return step.block.source_offset; });
  }
  first_step_.push_back(steps_.size());
  threads = std::min(threads, steps_.size() / steps_per_thread);
  if (threads > 1) workers_.emplace(threads - 1);
}

void SourceDigests::begin(const std::byte* source, const Range& parameters) noexcept {
  source_ = source;
  next_ = first_step_[parameters.first];
  end_ = first_step_[parameters.end()];
  for (auto p = parameters.first; p < parameters.end(); ++p) claim_.forget(p);
}

bool SourceDigests::work() noexcept {
  const auto index = next_.fetch_add(1);
  if (index >= end_) return false;
  const auto& [tp_rank, block] = steps_[index];
  claim_.add(tp_rank, block.parameter_index,
             digest_rows(source_ + block.source_offset, block.source_pitch, block.row_bytes, block.rows,
                         block.parameter_offset, block.parameter_pitch));
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

}  // namespace weightcast
