#include "weightcast/job/placement.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory_room.hpp"

namespace weightcast {
namespace {

/// Memory that ranks of one host may share.
struct SharedMemory {
  std::string name;  // the same on all that do
  std::uint64_t spare_bytes = 0;
  std::string left;  // in words
};

SharedMemory memory_at(Placement placement, const std::string& root) {
  if (placement.kind == MemoryKind::cuda) {
    const auto gpu = gpu::properties(placement.gpu);
    return {gpu.pci_bus_id, gpu.free_bytes,
            fmt::format("GPU {} has {} of {} left", placement.gpu, format_size(gpu.free_bytes),
                        format_size(gpu.total_bytes))};
  }
  const auto room = memory_room(root);
  // Containers may see different groups under one path.
  const auto group = room.group.empty() ? std::nullopt : identify(room.group);
  return {group ? fmt::format("{} {}", group->device, group->node) : "host",
          room.grows ? UINT64_MAX : room.spare_bytes(), room.describe()};
}

Error no_gpu() {
  const std::string host = "or leave out --gpus and use --device host";
  return Error(
      ExitCode::config, gpu::why_none(),
      gpu::cuda_version() == "not built in"
          ? "build it with the preset cuda (cmake --preset cuda), " + host
          : "see whether nvidia-smi shows one, what CUDA_VISIBLE_DEVICES says, whether the container was given "
            "it (docker run --gpus), " +
                host);
}

}  // namespace

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
    if (gpu::count() == 0) throw no_gpu();
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

void expect_room(const Communicator& world, Placement placement, std::uint64_t bytes, Deadline deadline,
                 const std::string& root) {
  SharedMemory memory;
  agree(world, "load", deadline, [&] { memory = memory_at(placement, root); });
  const auto local = world.split_by_host(deadline);
  const auto names = local.all_gather(memory.name, deadline);
  const auto needs = local.all_gather_values(std::span<const std::uint64_t>(&bytes, 1), deadline);
  std::uint64_t needed_bytes = 0, ranks = 0;
  for (std::size_t rank = 0; rank < names.size(); ++rank) {
    if (names[rank] != memory.name) continue;
    needed_bytes += needs[rank].at(0);
    ++ranks;
  }
  agree(world, "load", deadline, [&] {
    if (needed_bytes <= memory.spare_bytes) return;
    const bool limited = placement.kind == MemoryKind::host && memory.name != "host";
    throw Error(
        ExitCode::config,
        fmt::format("the weights of {} rank{} here need {}, but {}", ranks, ranks == 1 ? "" : "s",
                    format_size(needed_bytes), memory.left),
        fmt::format("use --commit in-place (one slot for each engine rank), --repeat 1 (one version on the trainer), "
                    "fewer replicas, a smaller model or more hosts{}",
                    limited ? "; or give the container or job more memory (docker run --memory, Kubernetes "
                              "limits.memory, sbatch --mem)"
                            : ""));
  });
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
