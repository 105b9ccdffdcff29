#include "weightcast/verify/shard_digests.hpp"

#include <algorithm>

namespace weightcast {
namespace {

constexpr std::uint64_t step_bytes = 1024 * 1024;

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

SourceDigests::SourceDigests(const TransferPlan& plan)
    : plan_(&plan), table_(plan.ranks.size() * plan.model.parameters.size()) {}

void SourceDigests::begin(const std::byte* source, std::size_t first, std::size_t count) noexcept {
  source_ = source;
  parameter_ = first;
  end_ = first + count;
  tp_rank_ = 0;
  done_bytes_ = 0;
  const auto parameters = plan_->model.parameters.size();
  for (std::size_t t = 0; t < plan_->ranks.size(); ++t)
    std::fill_n(table_.begin() + static_cast<std::ptrdiff_t>(t * parameters + first), count, Digest{});
}

bool SourceDigests::work() noexcept {
  while (parameter_ < end_) {
    const auto& shard = plan_->ranks[tp_rank_].shards[parameter_];
    auto& digest = table_[tp_rank_ * plan_->model.parameters.size() + parameter_];
    const auto left = shard.size_bytes() - done_bytes_;
    if (left == 0 || plan_->copy(tp_rank_, parameter_)) {
      // A copy has the digest of the rank before it: copies follow what they copy.
      if (tp_rank_ > 0 && plan_->copy(tp_rank_, parameter_)) digest = this->shard(tp_rank_ - 1, parameter_);
      done_bytes_ = 0;
      if (++tp_rank_ == plan_->ranks.size()) {
        tp_rank_ = 0;
        ++parameter_;
      }
      continue;
    }
    auto size_bytes = std::min(left, step_bytes);
    if (!shard.contiguous_source())
      size_bytes = std::min(left, std::max<std::uint64_t>(step_bytes / shard.row_bytes, 1) * shard.row_bytes);
    digest +=
        digest_part(*plan_, tp_rank_, parameter_, source_ + shard.source, shard.source_pitch, done_bytes_, size_bytes);
    done_bytes_ += size_bytes;
    return true;
  }
  return false;
}

Digest SourceDigests::parameter(std::size_t parameter) const noexcept {
  Digest sum;
  for (std::size_t t = 0; t < plan_->ranks.size(); ++t) {
    if (!plan_->copy(t, parameter)) sum += shard(t, parameter);
  }
  return sum;
}

}  // namespace weightcast
