#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "choices.hpp"
#include "weightcast/comm/communicator.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/telemetry/report.hpp"
#include "weightcast/update/update_group.hpp"

/// What update and bench share: a job of 1 + tp * dp ranks that ends on all ranks with one exit status.
namespace weightcast {

/// A running MPI job. At most one per process.
class Job {
 public:
  /// Initialises MPI. From now on signals that ask to end are only noted: see stop_if_asked().
  explicit Job(double timeout_s);

  const Communicator& world() const noexcept { return world_; }
  bool trainer() const noexcept { return world_.rank() == 0; }
  Deadline deadline() const noexcept { return Deadline::after(timeout_s_); }
  /// For work on `bytes` of weights that is not communication (reading, filling, writing): the timeout, and the time
  /// that this takes at 50 MB/s.
  Deadline deadline_for(std::uint64_t bytes) const noexcept {
    return deadline().plus(static_cast<double>(bytes) / 50e6);
  }

  /// Runs `body` on every rank, then `finish` on rank 0 with the error that ended `body`, if any (it writes the
  /// report). Prints the error block once. Returns the exit status, the same on all ranks; does not return when a rank
  /// is lost.
  int run(FunctionRef<void()> body, FunctionRef<void(const std::optional<Error>&)> finish);

  /// Error(deadline) on all `callers` when any of them has noted a signal. Collective over them; between updates.
  void stop_if_asked(const Communicator& callers, std::uint64_t updates) const;

 private:
  MpiEnvironment environment_;
  Communicator world_;
  double timeout_s_;
};

/// tp from the option, or the world's: (world - 1) / dp. Error(config) saying how to start it when that is no whole
/// number.
std::uint64_t tensor_parallel_size(const std::optional<std::uint64_t>& tp, std::uint64_t dp, int world);

/// Where this rank keeps weights: on the GPU that `gpus` names for it in rank order, or the host's GPUs in turn by
/// local rank; `automatic` is the host when any rank has no GPU. The kind is the same on all ranks. Collective.
/// Error(config) when build, machine or list do not fit.
Placement choose_placement(const Communicator& world, DeviceChoice device, const std::vector<int>& gpus,
                           Deadline deadline);

/// Every rank's role, host and GPU (its name and PCI bus id), on all ranks. Collective.
std::vector<ReportRank> gather_ranks(const Communicator& world, Placement placement, Deadline deadline);

/// Threads that each rank of this host may use for loading.
std::size_t threads_per_rank(const Communicator& world, Deadline deadline);

/// "role" of a rank: trainer or engine.
std::string role_of(int rank);

}  // namespace weightcast
