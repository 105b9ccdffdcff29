#pragma once

/// What the launcher (mpirun, srun) says about this process, readable before MPI is initialised.
namespace weightcast {

/// Rank in the job, 0 when nobody launched it as part of one.
int launch_rank() noexcept;
/// Ranks in the job as far as mpirun or srun says, else 1.
int launch_size() noexcept;

/// Before a failing process speaks: leaves the word, and the end of the job, to a rank that should speak first.
void let_others_speak(double seconds) noexcept;

}  // namespace weightcast
