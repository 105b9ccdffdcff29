#include "weightcast/job/launch.hpp"

#include <sched.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace weightcast {
namespace {

/// How one kind of launcher tells its ranks who they are.
struct Launcher {
  const char* what;
  const char* rank;
  const char* size;  // nullptr: it does not say
};
constexpr const char* slurm_size = "SLURM_STEP_NUM_TASKS";
// The first whose rank is there counts: mpirun and mpiexec may run below srun, and hand its variables on. Slurm's size
// is not SLURM_NTASKS: a batch script has it too, where a program without srun runs once.
constexpr std::array launchers = {
    Launcher{"mpirun of Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    Launcher{"mpirun of MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"},
    Launcher{"mpirun of another MPI (MPICH, Intel MPI, Cray)", "PMI_RANK", "PMI_SIZE"},
    Launcher{"flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"},
    Launcher{"srun", "SLURM_PROCID", slurm_size},
    Launcher{"a PMIx launcher", "PMIX_RANK", nullptr},
};

const Launcher* launcher() noexcept {
  for (const auto& each : launchers) {
    if (std::getenv(each.rank) != nullptr) return &each;
  }
  return nullptr;
}

int number(const char* variable, int otherwise) noexcept {
  const char* const text = variable == nullptr ? nullptr : std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

/// Whether there is a program that starts ranks.
bool launcher_in_path() {
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    for (const auto* name : {"mpirun", "mpiexec", "orterun", "prterun", "srun", "flux"}) {
      if (::access((folder + "/" + name).c_str(), X_OK) == 0) return true;
    }
  }
  return false;
}

}  // namespace

int launch_rank() noexcept {
  const auto* const by = launcher();
  return by == nullptr ? 0 : number(by->rank, 0);
}

int launch_size() noexcept {
  const auto* const by = launcher();
  return by == nullptr ? 1 : number(by->size, 1);
}

bool started_by_launcher() {
  std::string parent;
  if (!std::getline(std::ifstream("/proc/" + std::to_string(::getppid()) + "/comm"), parent)) return true;
  // Open MPI 4 and 5, Slurm, Hydra (MPICH, Intel MPI), MVAPICH, Cray, Flux.
  for (const auto* name : {"mpirun", "mpiexec", "orterun", "orted", "prte", "slurmstepd", "hydra_", "mpispawn", "palsd",
                           "pals", "apinit", "flux"}) {
    if (parent.starts_with(name)) return true;
  }
  return false;
}

LaunchCopy launch_copy() {
  if (!started_by_launcher()) return {};
  const char* const counts = std::getenv("OMPI_APP_CTX_NUM_PROCS");  // like "2 1", of `-n 2 other : -n 1 this`
  std::istringstream programs(counts == nullptr ? "" : counts);
  int first = 0;
  for (int count = 0; programs >> count; first += count) {
    if (launch_rank() < first + count) return {launch_rank() - first, count};
  }
  return {launch_rank(), launch_size()};
}

std::optional<Error> why_no_mpi() {
  const int ranks = launch_size();
  const auto* const by = launcher();
  if (by == nullptr && !launcher_in_path()) {
    return Error(ExitCode::config, "this takes several ranks, which mpirun starts, and there is no mpirun in PATH",
                 "install it (Debian, Ubuntu: openmpi-bin) or correct PATH, and start: mpirun -n RANKS weightcast ...");
  }
  if (ranks <= 1 || by->size != slurm_size || std::getenv("PMIX_RANK") != nullptr) return std::nullopt;
  Error error(
      ExitCode::config, fmt::format("srun has started {} ranks without PMIx, which MPI needs", ranks),
      fmt::format("start it with srun --mpi=pmix -n {0} (srun --mpi=list shows what there is), or with mpirun -n {0}",
                  ranks));
  error.set_reach(Error::Reach::everybody);
  return error;
}

std::optional<Error> why_alone() {
  const int ranks = launch_size();
  if (ranks <= 1) return std::nullopt;
  const auto* const by = launcher();
  return Error(
      ExitCode::config,
      fmt::format("{} has started {} ranks ({}={}), but each is alone in its MPI", by->what, ranks, by->size, ranks),
      fmt::format("start it with the mpirun of the Open MPI that weightcast is built with (weightcast --version): "
                  "mpirun -n {0}; under Slurm also srun --mpi=pmix -n {0}",
                  ranks));
}

std::optional<int> stopped_rank() {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    std::getline(file, stat);
    const auto name_end = stat.rfind(')');  // pid (name) state parent ...
    char state = 0;
    int parent = 0;
    if (name_end == stat.npos || std::sscanf(stat.c_str() + name_end + 1, " %c %d", &state, &parent) != 2) continue;
    if (parent != ::getppid() || (state != 'T' && state != 't')) continue;
    std::ifstream environment(entry.path() / "environ", std::ios::binary);
    constexpr std::string_view variable = "OMPI_COMM_WORLD_RANK=";
    for (std::string line; std::getline(environment, line, '\0');) {
      if (line.starts_with(variable)) return std::atoi(line.c_str() + variable.size());
    }
  }
  return std::nullopt;
}

void leave_default_binding() noexcept {
  const auto given = [](const char* variable) { return std::getenv(variable) != nullptr; };
  // Open MPI 4 says in a rank's environment that it was bound, and --bind-to and --map-by as the parameters they set.
  if (launch_size() > 2 || !given("OMPI_MCA_orte_bound_at_launch") || given("OMPI_MCA_hwloc_base_binding_policy") ||
      given("OMPI_MCA_rmaps_base_mapping_policy") || !started_by_launcher())
    return;
  cpu_set_t cores;
  if (::sched_getaffinity(::getppid(), sizeof(cores), &cores) == 0) ::sched_setaffinity(0, sizeof(cores), &cores);
}

void let_others_speak(double seconds) noexcept {
  timespec left{static_cast<time_t>(seconds), static_cast<long>((seconds - std::floor(seconds)) * 1e9)};
  while (::nanosleep(&left, &left) != 0) {
  }
}

}  // namespace weightcast
