#include "weightcast/job/placement.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "weightcast/core/file.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast {

Placement choose_placement(const Communicator& world, const Roster& roster, const DeviceOptions& options,
                           Deadline deadline) {
  const auto& gpus = options.gpus;
  const auto wish = [&](int rank) {
    const bool own = roster.trainer(rank) && options.trainer_device != DeviceChoice::automatic;
    return own ? options.trainer_device : options.device;
  };
  const auto mine = wish(world.rank());
  const bool on_host = mine == DeviceChoice::host;
  const auto others = world.split(on_host ? 1 : 0, world.rank(), deadline);  // who wishes for a GPU, and who does not
  const auto local = others.split_by_host(deadline);
  const bool some_without = world.max(!on_host && gpu::count() == 0 ? 1 : 0, deadline) != 0;
  Placement placement;
  agree(world, "start", deadline, [&] {
    const auto ranks = static_cast<std::size_t>(on_host ? world.size() - others.size() : others.size());
    if (!gpus.empty() && ranks == 0) fail(ExitCode::config, "--gpus does not go with --device host");
    if (!gpus.empty() && gpus.size() != ranks) {
      throw Error(ExitCode::config, fmt::format("--gpus names {} GPUs for {} ranks", gpus.size(), ranks),
                  "name one for each rank that is on a GPU, in rank order");
    }
    if (on_host || (mine == DeviceChoice::automatic && gpus.empty() && some_without)) return;
    if (gpu::count() == 0) throw Error(ExitCode::config, gpu::why_none(), "leave out --gpus and use --device host");
    const auto rank = static_cast<std::size_t>(others.rank());
    placement = {MemoryKind::cuda, gpus.empty() ? local.rank() % gpu::count() : gpus[rank]};
    gpu::properties(placement.gpu);  // it must exist
  });
  return placement;
}

MemoryKind memory_of_engines(const Communicator& world, const Roster& roster, Placement placement, Deadline deadline) {
  const bool on_gpu = !roster.trainer(world.rank()) && placement.kind == MemoryKind::cuda;
  return world.max(on_gpu ? 1 : 0, deadline) != 0 ? MemoryKind::cuda : MemoryKind::host;
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
