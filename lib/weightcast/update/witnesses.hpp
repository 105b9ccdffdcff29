#pragma once

#include <exception>
#include <optional>
#include <vector>

#include "weightcast/transport/transport.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {

/// Engine: digests what lands in the slot; on the host block by block while it is in cache, on a GPU by kernels that
/// follow the movement.
class SlotWitness final : public Witness {
 public:
  SlotWitness(const TransferPlan& plan, std::size_t tp_rank, Placement placement);
  void begin(const Region& slot, std::size_t first, std::size_t count);
  void landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept override;
  void landed_on(const gpu::Stream& stream, std::size_t first, std::size_t count) noexcept override;
  bool copy_on(gpu::Stream& stream, const std::byte* source, std::size_t first, std::size_t count) noexcept override;
  bool work() noexcept override { return false; }
  /// Waits for the digests of this call's parameters.
  void finish(Deadline deadline);
  Digest shard(std::size_t parameter) const noexcept { return digests_[parameter]; }
  /// Digests all that a slot holds, whoever put it there. Of all shards, by parameter.
  std::span<const Digest> digest(const Region& slot, Deadline deadline);
  std::span<const Digest> shards() const noexcept { return digests_; }

 private:
  const TransferPlan* plan_;
  std::size_t tp_rank_;
  std::byte* slot_ = nullptr;
  std::size_t first_ = 0, count_ = 0;
  std::vector<Digest> digests_;
  std::optional<GpuDigests> gpu_;
  std::exception_ptr error_;  // of landed_on() and copy_on(), which may not throw
};

/// Trainer: digests what is sent, while it is being sent; where that is `crowded`, after the movement: on a host with
/// fewer cores than ranks (then on all cores), on a GPU that all engines share (processes take turns on it, and each
/// turn costs; an engine across a link takes so much longer that this does not matter).
class SourceWitness final : public Witness {
 public:
  SourceWitness(const TransferPlan& plan, Placement placement, bool crowded);
  void begin(const Region& source, std::size_t first, std::size_t count);
  void landed(std::size_t, std::uint64_t, std::uint64_t) noexcept override {}
  void landed_on(const gpu::Stream&, std::size_t, std::size_t) noexcept override {}
  bool work() noexcept override;
  void finish(Deadline deadline);
  /// Complete after finish().
  const SourceDigests& digests() const noexcept { return digests_; }

 private:
  const TransferPlan* plan_;
  bool crowded_;
  std::size_t first_ = 0, count_ = 0;
  SourceDigests digests_;
  std::optional<GpuDigests> gpu_;
};

}  // namespace weightcast
