#pragma once

/// What the launcher (mpirun, srun) says about this process, readable before MPI is initialised.
namespace weightcast {

/// Rank in the job, 0 when nobody launched it as part of one.
int launch_rank() noexcept;
/// Ranks in the job as far as mpirun says, else 1.
int launch_size() noexcept;

}  // namespace weightcast
