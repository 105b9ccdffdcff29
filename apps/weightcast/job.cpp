#include "job.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "error_block.hpp"
#include "launch.hpp"
#include "stop.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {

std::string role_of(int rank) {
  return rank == 0 ? "trainer" : "engine";
}

Job::Job(double timeout_s)
    : environment_(nullptr, nullptr), world_(Communicator::duplicate(MPI_COMM_WORLD)), timeout_s_(timeout_s) {
  note_signals();
}

int Job::run(FunctionRef<void()> body, FunctionRef<void(const std::optional<Error>&)> finish) {
  std::optional<Error> error;
  try {
    body();
  } catch (...) {
    error = current_error();
  }
  const auto shared = [&] { return !error || error->reach() == Error::Reach::everybody; };
  if (!shared()) obey_signals();  // the launcher is ending a job that is lost
  const auto place = [&] {
    if (!error) return;
    auto& origin = error->origin();
    if (origin.rank < 0) origin.rank = world_.rank();
    if (origin.host.empty() && origin.rank == world_.rank()) origin.host = host_name();
    origin.role = role_of(origin.rank);
  };
  place();
  try {
    if (shared()) {
      agree(world_, "report", deadline(), [&] {
        if (trainer()) finish(error);
      });
    } else if (trainer()) {
      finish(error);
    }
  } catch (...) {
    if (!error) error = current_error();
    place();
  }
  if (!error) return 0;
  const bool together = shared();
  // When a rank is lost, the lowest one that still runs should speak and end the job.
  if (!together && !trainer()) let_others_speak(1.0 + 0.2 * world_.rank());
  if (trainer() || !together) {
    std::fflush(stdout);
    fmt::print(stderr, "{}", error_block(*error, static_cast<int>(error->code())));
    std::fflush(stderr);
  }
  if (!together) abort_job(error->code());
  return static_cast<int>(error->code());
}

void Job::stop_if_asked(const Communicator& callers, std::uint64_t updates) const {
  agree(callers, "next update", deadline(), [&] {
    if (const int number = noted_signal(); number != 0)
      throw stopped_by(number, fmt::format("after {} updates", updates));
  });
}

std::uint64_t tensor_parallel_size(const std::optional<std::uint64_t>& tp, std::uint64_t dp, int world) {
  const auto engines = static_cast<std::uint64_t>(world) - 1;
  if (tp && engines == *tp * dp) return *tp;
  if (!tp && engines > 0 && engines % dp == 0) return engines / dp;
  const auto needed = 1 + tp.value_or(1) * dp;
  throw Error(ExitCode::config,
              fmt::format("{} ranks are not 1 trainer + {} x {} engine ranks", world, dp,
                          tp ? std::to_string(*tp) : std::string("tp")),
              fmt::format("start it with mpirun -n {}, or change --tp and --dp", needed));
}

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

std::vector<ReportRank> gather_ranks(const Communicator& world, Placement placement, Deadline deadline) {
  const auto hosts = world.all_gather(host_name(), deadline);
  std::string gpu;
  if (placement.kind == MemoryKind::cuda) {
    const auto properties = gpu::properties(placement.gpu);
    gpu = fmt::format("{} {} {}", placement.gpu, properties.name, properties.pci_bus_id);
  }
  const auto gpus = world.all_gather(gpu, deadline);
  std::vector<ReportRank> ranks;
  for (std::size_t r = 0; r < hosts.size(); ++r)
    ranks.push_back({static_cast<int>(r), role_of(static_cast<int>(r)), hosts[r], gpus[r]});
  return ranks;
}

std::size_t threads_per_rank(const Communicator& world, Deadline deadline) {
  const auto local = world.split_by_host(deadline);
  return std::max<std::size_t>(available_cores() / static_cast<std::size_t>(local.size()), 1);
}

}  // namespace weightcast
