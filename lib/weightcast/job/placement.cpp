#include "weightcast/job/placement.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "weightcast/core/file.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast {

Placement choose_placement(const Communicator& world, DeviceChoice device, const std::vector<int>& gpus,
                           Deadline deadline) {
  const auto local = world.split_by_host(deadline);
  const bool some_without = world.max(gpu::count() == 0 ? 1 : 0, deadline) != 0;
  Placement placement;
  agree(world, "start", deadline, [&] {
    const auto ranks = static_cast<std::size_t>(world.size());
    if (!gpus.empty() && gpus.size() != ranks) {
      throw Error(ExitCode::config, fmt::format("--gpus names {} GPUs for {} ranks", gpus.size(), ranks),
                  "name one for each rank, in rank order");
    }
    if (device == DeviceChoice::host && !gpus.empty()) fail(ExitCode::config, "--gpus does not go with --device host");
    if (device == DeviceChoice::host || (device == DeviceChoice::automatic && gpus.empty() && some_without)) return;
    if (gpu::count() == 0) throw Error(ExitCode::config, gpu::why_none(), "leave out --gpus and use --device host");
    const auto rank = static_cast<std::size_t>(world.rank());
    placement = {MemoryKind::cuda, gpus.empty() ? local.rank() % gpu::count() : gpus[rank]};
    gpu::properties(placement.gpu);  // it must exist
  });
  return placement;
}

void expect_same(const Communicator& world, const std::string& what, Deadline deadline) {
  const auto first = world.all_gather(what, deadline).at(0);
  agree(world, "start", deadline, [&] {
    if (what == first) return;
    throw Error(ExitCode::config, fmt::format("started with {}, but rank 0 with {}", what, first),
                "start all ranks with the same options, and the same WEIGHTCAST_* variables on all hosts");
  });
}

std::vector<ReportRank> gather_ranks(const Communicator& world, const Roster& roster, Placement placement,
                                     Deadline deadline) {
  const auto hosts = world.all_gather(host_name(), deadline);
  std::string gpu;
  if (placement.kind == MemoryKind::cuda) {
    const auto properties = gpu::properties(placement.gpu);
    gpu = fmt::format("{} {} {}", placement.gpu, properties.name, properties.pci_bus_id);
  }
  const auto gpus = world.all_gather(gpu, deadline);
  std::vector<ReportRank> ranks;
  for (std::size_t r = 0; r < hosts.size(); ++r) {
    const auto rank = static_cast<int>(r);
    ranks.push_back({rank, std::string(roster.role(rank)), hosts[r], gpus[r]});
  }
  return ranks;
}

std::size_t threads_per_rank(const Communicator& world, Deadline deadline) {
  const auto local = world.split_by_host(deadline);
  return std::max<std::size_t>(available_cores() / static_cast<std::size_t>(local.size()), 1);
}

}  // namespace weightcast
