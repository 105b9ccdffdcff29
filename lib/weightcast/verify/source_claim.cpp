#include "weightcast/verify/source_claim.hpp"

#include <algorithm>
#include <atomic>

namespace weightcast {

SourceClaim::SourceClaim(const TransferPlan& plan, std::size_t trainer_rank)
    : plan_(&plan),
      trainer_rank_(trainer_rank),
      table_((plan.ranks.size() + 1) * plan.model.parameters.size()),
      known_(plan.model.parameters.size()) {}

void SourceClaim::forget(std::size_t parameter) noexcept {
  known_[parameter] = false;
  for (auto at = parameter; at < table_.size(); at += known_.size()) table_[at] = {};
}

void SourceClaim::add(const Chunk& chunk, const std::byte* data) {
  const auto parameter = chunk.staged.parameter_index;
  const auto add_rows = [&](std::size_t at, const Segment& rows) {
    add(at, parameter,
        digest_rows(data + rows.source_offset, rows.source_pitch, rows.row_bytes, rows.rows, rows.parameter_offset,
                    rows.parameter_pitch));
  };
  if (chunk.from != trainer_rank_) return add_rows(plan_->ranks.size(), segment_of(plan_->model, chunk.staged));
  for (std::size_t t = 0; t < plan_->ranks.size(); ++t) {
    if (plan_->copy(t, parameter)) continue;
    const auto part = segment_of(*plan_, t, chunk.staged);
    if (part.rows != 0) add_rows(t, part);
  }
}

void SourceClaim::add(std::size_t tp_rank, std::size_t parameter, const Digest& digest) noexcept {
  auto& sum = table_[tp_rank * known_.size() + parameter];
  std::atomic_ref(sum.first) += digest.first;
  std::atomic_ref(sum.second) += digest.second;
}

void SourceClaim::add(std::size_t parameter, std::span<const Digest> digests) noexcept {
  const auto others = plan_->ranks.size();
  for (std::size_t t = 0; t <= others; ++t) {
    if (t == others || !plan_->copy(t, parameter)) add(t, parameter, digests[t * known_.size() + parameter]);
  }
}

bool SourceClaim::knows(const Range& parameters) const noexcept {
  const auto first = known_.begin() + static_cast<std::ptrdiff_t>(parameters.first);
  return std::all_of(first, first + static_cast<std::ptrdiff_t>(parameters.count), [](bool known) { return known; });
}

Digest SourceClaim::shard(std::size_t tp_rank, std::size_t parameter) const noexcept {
  while (plan_->copy(tp_rank, parameter)) --tp_rank;  // copies follow what they copy
  return table_[tp_rank * known_.size() + parameter];
}

Digest SourceClaim::held(std::size_t parameter) const noexcept {
  Digest sum = table_[plan_->ranks.size() * known_.size() + parameter];
  for (std::size_t t = 0; t < plan_->ranks.size(); ++t) {
    if (!plan_->copy(t, parameter)) sum += shard(t, parameter);
  }
  return sum;
}

Digest SourceClaim::model() const {
  std::vector<Digest> parameters;
  for (std::size_t p = 0; p < known_.size(); ++p) parameters.push_back(held(p));
  return digest_of_model(plan_->model, parameters);
}

}  // namespace weightcast
