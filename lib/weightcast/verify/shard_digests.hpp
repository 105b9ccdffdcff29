#pragma once

#include <atomic>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "weightcast/core/parallel.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/verify/source_claim.hpp"

/// The two sides of the proof: what the trainer sent, and what an engine rank's slot holds. Both are a digest for each
/// shard, gathered block by block while the bytes are in cache. Memory is allocated by the constructors only.
namespace weightcast {

/// Digest of a shard, or of a part of one, held in a slot at `slot`.
Digest digest_of_shard(const Shard& shard, const std::byte* slot) noexcept;
inline Digest digest_of_shard(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter,
                              const std::byte* slot) noexcept {
  return digest_of_shard(plan.ranks[tp_rank].shards[parameter], slot);
}

/// The trainer's side: of what one trainer rank has, the digest of every shard of every tp rank, computed from its
/// source in bounded steps.
class SourceDigests {
 public:
  /// Works on up to `threads` threads, the caller's included, as far as there is enough to do for them.
  explicit SourceDigests(const TransferPlan& plan, std::size_t threads = 1, std::size_t trainer_rank = 0);
  /// Starts over for these parameters of the source region at `source`.
  void begin(const std::byte* source, const Range& parameters) noexcept;
  /// Digests at most a few mebibytes; false when nothing was left to begin. Thread-safe.
  bool work() noexcept;
  /// Does what is left, on all threads where there is enough of it.
  void finish() noexcept;
  /// Of what was begun; complete after finish().
  const SourceClaim& claim() const noexcept { return claim_; }

 private:
  SourceClaim claim_;
  std::vector<Chunk> steps_;  // by parameter
  std::span<const Chunk> begun_;
  const std::byte* source_ = nullptr;
  std::atomic<std::size_t> next_{0};  // of those begun
  std::optional<Workers> workers_;
};

}  // namespace weightcast
