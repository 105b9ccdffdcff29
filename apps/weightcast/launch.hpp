#pragma once

#include <optional>

/// What the launcher (mpirun, srun) says about this process, readable before MPI is initialised.
namespace weightcast {

/// Rank in the job, 0 when nobody launched it as part of one.
int launch_rank() noexcept;
/// Ranks in the job as far as mpirun or srun says, else 1.
int launch_size() noexcept;

/// Before a failing process speaks: leaves the word, and the end of the job, to a rank that should speak first.
void let_others_speak(double seconds) noexcept;

/// The rank of a process that the same launcher has started on this host and that is stopped (SIGSTOP, a debugger), or
/// nothing. For when MPI cannot be asked.
std::optional<int> stopped_rank();

}  // namespace weightcast
