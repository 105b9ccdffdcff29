#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/digest.hpp"
#include "weightcast/delta/delta_plan.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"

namespace weightcast {

/// An engine rank's end: streams as they arrive in its inboxes, and what they do to a slot. On the host or on a GPU.
/// All memory is allocated by the constructor.
class DeltaReceiver {
 public:
  virtual ~DeltaReceiver() = default;

  /// Begins to apply what has arrived in an inbox, so many parts of each stream, to a slot: checks all of it
  /// (delta.md), then writes, or, where something does not fit, writes nothing (without `swap` perhaps what fits, on a
  /// GPU). `swap`: entries get the bits that were there, and to apply them once more undoes it. On a GPU this queues;
  /// one at a time.
  virtual void begin(std::size_t inbox_index, std::size_t parts, bool swap, const Region& slot) = 0;
  /// The same of a copy of one slot to the other.
  virtual void begin_copy(const Region& from, const Region& to) = 0;
  /// Waits for it; Error(deadline) from a GPU. What a delta added to the digest of each parameter's shard; nothing when
  /// it did not fit, and of a copy nothing of use.
  virtual std::span<const Digest> finish(Deadline deadline) = 0;
  /// Checks what has arrived ahead of the next begin() with `swap`, which then does not. Whether it fits; also where
  /// that is left to begin().
  virtual bool check(std::size_t, std::size_t, Deadline) { return true; }

  /// Whether deltas can be applied while they arrive; else the functions below are not called.
  virtual bool follows() const noexcept { return false; }
  /// Behind what was begun: makes the new version in `slot` of what lies there, or, with `base`, of what lies there and
  /// comes into the slot in the same pass, as the parts that are to arrive in the inbox are announced by landed().
  virtual void follow(std::size_t, std::size_t, const std::byte*, const Region&) {}
  /// This part of a trainer rank's stream is there as soon as what `stream` has been given so far is done. In order.
  virtual void landed(const gpu::Stream&, std::size_t, std::size_t) noexcept {}
  /// Everything is there: waits, as finish() does. What was added to digests, or, with `base`, those of all that the
  /// slot holds now; nothing when something did not fit: then what was written is not a version.
  virtual std::span<const Digest> finish_following(Deadline) { return {}; }
  /// Waits until nothing is under way.
  virtual void settle(Deadline) noexcept {}

  /// Entries that so many parts of all streams have room for.
  std::uint64_t room(std::size_t parts) const noexcept;
  /// Where streams arrive.
  std::vector<Region> inboxes() const;
  /// By which others map them; only where dp > 1, or on a GPU.
  std::vector<ShareHandle> share() const;

 protected:
  /// `plan` must outlive it.
  DeltaReceiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count, Placement placement,
                std::size_t parameter_count);
  struct Arrived {
    const DeltaStream* stream;
    std::byte* data;
    std::uint64_t capacity;  // entries of it, at most
  };
  Arrived arrived(const DeltaStream& stream, std::size_t inbox_index, std::size_t parts) const noexcept;

  std::span<const DeltaStream> streams_;
  std::vector<Buffer> inboxes_;
  std::vector<Digest> changes_;  // by parameter
};

/// `parameter_count`: of the model; `digests`: whether any are asked for. Error(unavailable) when memory is short.
std::unique_ptr<DeltaReceiver> make_host_delta_receiver(const DeltaPlan& plan, std::size_t tp_rank,
                                                        std::size_t inbox_count, std::size_t parameter_count);
std::unique_ptr<DeltaReceiver> make_gpu_delta_receiver(const DeltaPlan& plan, std::size_t tp_rank,
                                                       std::size_t inbox_count, int gpu, std::size_t parameter_count,
                                                       bool digests);

}  // namespace weightcast
