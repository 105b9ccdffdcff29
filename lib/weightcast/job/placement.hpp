#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/plan/roster.hpp"
#include "weightcast/telemetry/report.hpp"

/// Who is who in a job, and where each rank keeps its weights.
namespace weightcast {

enum class DeviceChoice { automatic, host, cuda };

struct DeviceOptions {
  DeviceChoice device = DeviceChoice::automatic;          ///< where weights are
  DeviceChoice trainer_device = DeviceChoice::automatic;  ///< where the trainer's are; automatic: as `device`
  std::vector<int> gpus = {};  ///< of each rank that is on one, in rank order; empty: the host's in turn
};

/// Where this rank keeps weights: on the GPU that is named for it (a trainer and an engine rank may share one), or the
/// host's GPUs in turn by local rank; `automatic` is the host when any rank has no GPU. The kind is the same on all
/// engine ranks, and on all trainer ranks. Collective. Error(config) when build, machine or list do not fit.
Placement choose_placement(const Communicator& world, const Roster& roster, const DeviceOptions& options,
                           Deadline deadline);
/// The kind of the engines' memory, on all ranks. Collective.
MemoryKind memory_of_engines(const Communicator& world, const Roster& roster, Placement placement, Deadline deadline);

/// Before `bytes` are taken by this rank where its weights go: Error(config) on all ranks, with the figures, when the
/// ranks that share that memory (a host's or its control group's, or a GPU's) need more of it together than is left.
/// A machine that grows (MemoryRoom) sets no limit. Collective. `root` comes before every path (of tests).
void expect_room(const Communicator& world, Placement placement, std::uint64_t bytes, Deadline deadline,
                 const std::string& root = {});

/// Error(config), naming who differs from rank 0, unless all ranks were asked for `what`. Collective.
void expect_same(const Communicator& world, const std::string& what, Deadline deadline);

/// Every rank's role, host and GPU (its name and PCI bus id), on all ranks. Collective.
std::vector<ReportRank> gather_ranks(const Communicator& world, const Roster& roster, Placement placement,
                                     Deadline deadline);

/// Threads that each rank of this host may use for loading. Collective.
std::size_t threads_per_rank(const Communicator& world, Deadline deadline);

}  // namespace weightcast
