#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast {

/// Digests of shards in device memory, by kernels on a stream of their own that overlap with the movement. What is
/// digested is cut into items. All memory is allocated by the constructor.
class GpuDigests {
 public:
  /// Of one tp rank's slot: items are the segments of its schedule, result i is that of parameter i's shard.
  static GpuDigests of_slot(const TransferPlan& plan, std::size_t tp_rank, int gpu);
  /// The same results, of which items are parameters: all of a shard, whoever sends it.
  static GpuDigests of_shards(const TransferPlan& plan, std::size_t tp_rank, int gpu);
  /// Of a trainer rank's source: items are parameters, result t * parameters + i is that of what it speaks for (see
  /// SourceClaim) of tp rank t's shard of parameter i, zero for copies; with t = tp of what others speak for.
  static GpuDigests of_source(const TransferPlan& plan, int gpu, std::size_t trainer_rank = 0);
  /// The same results, of which items are the rank's pieces in the order of its source region.
  static GpuDigests of_pieces(const TransferPlan& plan, int gpu, std::size_t trainer_rank);

  /// Starts over; the memory to digest is at `base`.
  void begin(const std::byte* base);
  /// Queues these items, behind what `after` has been given so far (nullptr: at once).
  void queue(const Range& items, gpu::Share share, const gpu::Stream* after);
  /// Of a source region, at `base` too: brings an item there, digesting it on the way. `source` counts offsets as the
  /// region does; on the same GPU.
  void fill(std::size_t item, const gpu::CopySource& source, std::byte* base);
  /// Of a slot: lets whoever copies its segments there from a trainer rank's source on the same GPU digest them on the
  /// way, item by item, in place of queue(). Between begin() and finish().
  gpu::DigestTarget target() noexcept;
  /// Queues the results' way to the host, behind all that was queued so far: early, where nothing else is expected.
  /// finish() does it where it was not done, or not for all.
  void fetch();
  /// Waits for all that was queued. What was not queued since begin() adds nothing to any result.
  std::span<const Digest> finish(Deadline deadline);

 private:
  GpuDigests(std::size_t results, const std::vector<std::vector<gpu::DigestTask>>& tasks_by_item, int gpu);

  std::vector<std::size_t> first_task_;  // by item, and the end
  Buffer tasks_, sums_;
  Staging fetched_;
  std::size_t results_ = 0;
  gpu::Stream stream_;
  const std::byte* base_ = nullptr;
  bool fetching_ = false;  // all that was queued
};

}  // namespace weightcast
