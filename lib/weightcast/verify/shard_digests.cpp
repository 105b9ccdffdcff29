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

SourceDigests::SourceDigests(const TransferPlan& plan, std::size_t threads, std::size_t trainer_rank)
    : claim_(plan, trainer_rank), steps_(chunks_held(plan, trainer_rank, step_bytes)) {
  threads = std::min(threads, steps_.size() / steps_per_thread);
  if (threads > 1) workers_.emplace(threads - 1);
}

void SourceDigests::begin(const std::byte* source, const Range& parameters) noexcept {
  source_ = source;
  begun_ = chunks_of(steps_, parameters);
  next_ = 0;
  for (auto p = parameters.first; p < parameters.end(); ++p) claim_.forget(p);
}

bool SourceDigests::work() noexcept {
  const auto index = next_.fetch_add(1);
  if (index >= begun_.size()) return false;
  claim_.add(begun_[index], source_ + begun_[index].source_offset);
  return true;
}

void SourceDigests::finish() noexcept {
  const auto work_off = [&] {
    while (work()) {
    }
  };
  const auto left = begun_.size() - std::min(next_.load(), begun_.size());
  if (workers_ && left >= 2 * steps_per_thread) return workers_->run(work_off);
  work_off();
}

}  // namespace weightcast
