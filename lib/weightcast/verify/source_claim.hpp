#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "weightcast/plan/chunks.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast {

/// What a trainer rank says that a source region of its holds: the digest of its part of every shard of every tp rank,
/// taken while the weights were brought there. So that sums over ranks are right, one speaks for what several have (see
/// Holding::speaker()); what others speak for is digested for itself. It knows the parameters of which all was; of the
/// others it says nothing.
/// Memory is allocated by the constructor only.
class SourceClaim {
 public:
  /// Knows nothing yet. `plan` must outlive it.
  explicit SourceClaim(const TransferPlan& plan, std::size_t trainer_rank = 0);

  /// Starts over for a parameter.
  void forget(std::size_t parameter) noexcept;
  /// Adds the digests of a chunk of what this rank has that lies at `data`, be it its to speak for or another's.
  /// Thread-safe.
  void add(const Chunk& chunk, const std::byte* data);
  /// The same of one shard, by whoever digests. Thread-safe.
  void add(std::size_t tp_rank, std::size_t parameter, const Digest& digest) noexcept;
  /// The same of all of a parameter, from digests as GpuDigests::of_source() has them.
  void add(std::size_t parameter, std::span<const Digest> digests) noexcept;
  /// All of a parameter was added.
  void complete(std::size_t parameter) noexcept { known_[parameter] = true; }

  bool knows(const Range& parameters) const noexcept;
  bool knows_all() const noexcept { return knows({0, known_.size()}); }
  /// Of shard `parameter` of `tp_rank`.
  Digest shard(std::size_t tp_rank, std::size_t parameter) const noexcept;
  /// Of all that this rank has of a parameter: of a lone trainer rank the sum over its shards, copies counted once.
  Digest held(std::size_t parameter) const noexcept;
  /// digest_of_model() of all that this rank has: of a lone trainer rank that of the model.
  Digest model() const;

 private:
  const TransferPlan* plan_;
  std::size_t trainer_rank_;
  // By tp rank, then parameter; copies stay zero. Last, by parameter, of what other ranks speak for.
  std::vector<Digest> table_;
  std::vector<bool> known_;
};

}  // namespace weightcast
