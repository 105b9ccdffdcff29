#include "launch.hpp"

#include <cmath>
#include <cstdlib>
#include <ctime>
#include <initializer_list>

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

void let_others_speak(double seconds) noexcept {
  timespec left{static_cast<time_t>(seconds), static_cast<long>((seconds - std::floor(seconds)) * 1e9)};
  while (::nanosleep(&left, &left) != 0) {
  }
}

}  // namespace weightcast
