#include "launch.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <string_view>

namespace weightcast {
namespace {

int first_number(std::initializer_list<const char*> variables, int otherwise) noexcept {
  for (const char* variable : variables) {
    if (const char* text = std::getenv(variable)) return std::atoi(text);
  }
  return otherwise;
}

}  // namespace

int launch_rank() noexcept {
  return first_number({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}, 0);
}

// Not SLURM_NTASKS: a batch script has it too, where a program without srun runs once.
int launch_size() noexcept {
  return first_number({"OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}, 1);
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

void let_others_speak(double seconds) noexcept {
  timespec left{static_cast<time_t>(seconds), static_cast<long>((seconds - std::floor(seconds)) * 1e9)};
  while (::nanosleep(&left, &left) != 0) {
  }
}

}  // namespace weightcast
