#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "weightcast/core/function_ref.hpp"
#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// Owner of a communicator on one GPU. What NCCL does while it waits for other ranks (joining them, and the first use,
/// which connects them) runs in a thread of its own and can be given up; after that NCCL only queues work, in the
/// caller's thread, and work that is queued is polled. So every wait has a deadline and sees errors of the peers. Ends
/// by abort in any case: that is local, and also ends kernels that wait for a lost peer. Errors are Error(unavailable)
/// with NCCL's text, or Error(deadline).
class NcclCommunicator {
 public:
  NcclCommunicator() = default;
  /// Begins to join the `size` ranks that were given the same id; ready() completes it.
  NcclCommunicator(const ncclUniqueId& id, int size, int rank, int gpu);
  NcclCommunicator(NcclCommunicator&& other) noexcept = default;
  NcclCommunicator& operator=(NcclCommunicator&& other) noexcept;
  ~NcclCommunicator() { abort(); }

  /// Waits until all ranks have joined, and checks that the communicator is bound to the GPU that was meant.
  void ready(Deadline deadline);
  /// The barrier that belongs to a device: one element reduced over all ranks on this GPU. Also connects the ranks for
  /// all that broadcast() does. Once, after ready(); where ranks have several communicators, in an order in which no
  /// two of them wait for each other.
  void barrier(Deadline deadline);
  /// Queues `count` transfers from rank `root` to all others, in order: each rank has the same sizes at a place of its
  /// own. Always on the same stream. Waits when much more is queued than the link can need.
  void broadcast(std::size_t count, FunctionRef<Region(std::size_t)> place, int root, const gpu::Stream& stream,
                 Deadline deadline);
  /// Whether broadcast() would not wait. For ranks that have others to serve meanwhile.
  bool room() const;
  /// Waits until all that `stream` was given is done.
  void wait(const gpu::Stream& stream, Deadline deadline, const char* what) const;
  /// Leaves at once. Gives up waiting for NCCL itself after some seconds.
  void abort() noexcept;

 private:
  struct Handle;

  /// Runs `work`, which takes the handle, in a thread of its own; finish() waits for it.
  template <typename Work>
  void begin(Work work);
  void finish(Deadline deadline, const char* what);
  /// Waits while much is queued.
  void make_room(const gpu::Stream& stream, Deadline deadline);

  std::shared_ptr<Handle> handle_;
  std::optional<gpu::Event> mark_;  // a while ago in what was queued
  std::uint64_t calls_ = 0;         // of broadcast() so far
};

/// Why these two ranks cannot use NCCL, or nothing.
std::optional<std::string> refuse_nccl(const Peers& peers, int rank, int other);

/// `count` ids made by the trainer, on all ranks of the group. Collective; may throw on one rank only. Error(config) on
/// all of them when they have different versions of NCCL.
std::vector<ncclUniqueId> share_ids(const Peers& peers, std::size_t count, Deadline deadline);

inline cudaStream_t cuda(const gpu::Stream& stream) noexcept {
  return static_cast<cudaStream_t>(stream.handle());
}

}  // namespace weightcast
