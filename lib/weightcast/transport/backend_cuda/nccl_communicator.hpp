#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <optional>
#include <vector>

#include "weightcast/core/function_ref.hpp"
#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// Owner of a communicator that never blocks, bound to one GPU: NCCL is polled, every wait has a deadline and sees
/// errors of the peers. Ends by abort in any case: that is local, and also ends kernels that wait for a lost peer.
/// Errors are Error(unavailable) with NCCL's text, or Error(deadline).
class NcclCommunicator {
 public:
  NcclCommunicator() = default;
  /// Begins to join the `size` ranks that were given the same id; ready() completes it.
  NcclCommunicator(const ncclUniqueId& id, int size, int rank, int gpu);
  NcclCommunicator(NcclCommunicator&& other) noexcept;
  NcclCommunicator& operator=(NcclCommunicator&& other) noexcept;
  ~NcclCommunicator() { abort(); }

  ncclComm_t get() const noexcept { return comm_; }
  /// Waits until NCCL has taken in all that it was asked for.
  void ready(Deadline deadline, const char* what) const;
  /// Runs `calls` as one group; they return NCCL's status. What they queue must not need another rank's stream.
  void group(FunctionRef<ncclResult_t()> calls, Deadline deadline) const;
  /// Waits until all that `stream` was given is done.
  void wait(const gpu::Stream& stream, Deadline deadline, const char* what) const;
  /// The barrier that belongs to a device: one element reduced over all ranks on this GPU's stream. `scratch` has 4
  /// bytes of its memory. Also checks that the communicator is bound to the GPU that was meant.
  void barrier(std::byte* scratch, const gpu::Stream& stream, Deadline deadline) const;
  /// Leaves at once. Gives up waiting for NCCL itself after some seconds.
  void abort() noexcept;

 private:
  void check(ncclResult_t status, const char* call) const;
  /// False while NCCL is still taking in.
  bool taken_in(const char* what) const;

  ncclComm_t comm_ = nullptr;
  int gpu_ = -1;
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
