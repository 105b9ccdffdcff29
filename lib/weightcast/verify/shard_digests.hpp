#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/digest.hpp"

/// The two sides of the proof: what the trainer sent, and what an engine rank's slot holds. Both are a digest for each
/// shard, gathered block by block while the bytes are in cache. Memory is allocated by the constructors only.
namespace weightcast {

/// Digest of bytes [first, first + size_bytes) of the packed shard `parameter` of `tp_rank`, held in a slot at `slot`.
Digest digest_of_shard_part(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter, const std::byte* slot,
                            std::uint64_t first, std::uint64_t size_bytes) noexcept;

/// Digest of the whole shard, as above.
Digest digest_of_shard(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter,
                       const std::byte* slot) noexcept;

/// The trainer's side: the digest of every shard of every tp rank, computed from the source in bounded steps.
class SourceDigests {
 public:
  explicit SourceDigests(const TransferPlan& plan);
  /// Starts over for parameters [first, first + count) of the source region at `source`.
  void begin(const std::byte* source, std::size_t first, std::size_t count) noexcept;
  /// Digests about a mebibyte; false when nothing was left to do.
  bool work() noexcept;
  void finish() noexcept {
    while (work()) {
    }
  }
  /// Of shard `parameter` of `tp_rank`; complete after finish().
  Digest shard(std::size_t tp_rank, std::size_t parameter) const noexcept {
    return table_[tp_rank * plan_->model.parameters.size() + parameter];
  }
  /// For digests that were computed elsewhere (on a GPU).
  void set(std::size_t tp_rank, std::size_t parameter, const Digest& digest) noexcept {
    table_[tp_rank * plan_->model.parameters.size() + parameter] = digest;
  }
  /// Of the whole parameter: the sum over its shards, copies counted once.
  Digest parameter(std::size_t parameter) const noexcept;

 private:
  const TransferPlan* plan_;
  std::vector<Digest> table_;  // by tp rank, then parameter
  const std::byte* source_ = nullptr;
  std::size_t parameter_ = 0, end_ = 0, tp_rank_ = 0;
  std::uint64_t done_bytes_ = 0;  // of the current shard
};

}  // namespace weightcast
