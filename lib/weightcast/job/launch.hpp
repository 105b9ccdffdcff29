#pragma once

#include <optional>

#include "weightcast/core/error.hpp"

/// What the launcher (mpirun, srun) says about this process, readable before MPI is initialised. Programs that a rank
/// starts, as a training script does, inherit all of it: only started_by_launcher() tells them from ranks.
namespace weightcast {

/// Rank in the job, 0 when nobody launched it as part of one.
int launch_rank() noexcept;
/// Ranks in the job as far as the launcher says, else 1.
int launch_size() noexcept;

/// Whether the parent of this process is a launcher (by the name of its program), so that it is a rank itself. A
/// program in between, be it a shell, counts as a rank that starts others. True where the parent cannot be seen.
bool started_by_launcher();

/// Of the ranks that run this program: its index among them and how many there are. They differ from launch_rank() and
/// launch_size() in `mpirun -n 2 other : -n 1 this`, and are 0 and 1 unless started_by_launcher().
struct LaunchCopy {
  int index = 0, count = 1;
};
LaunchCopy launch_copy();

/// Before MPI_Init: Error(config) of Reach::everybody when srun has started several ranks and offers them no PMIx: Open
/// MPI would end each with a page of text about how it was built. Error(config), too, when nobody has started this as a
/// rank, and there is no launcher here that could.
std::optional<Error> why_no_mpi();

/// For a rank that finds itself alone in its MPI_COMM_WORLD: Error(config) saying why and what to do when a launcher
/// has started several, because launcher and MPI library do not belong together. Nothing when it was started alone.
std::optional<Error> why_alone();

/// Before any thread: takes the cores of the launcher's own process when Open MPI has bound this rank to one core
/// because of their number alone (its default for up to two). A rank has several threads. What was asked for stays.
void leave_default_binding() noexcept;

/// Before a failing process speaks: leaves the word, and the end of the job, to a rank that should speak first.
void let_others_speak(double seconds) noexcept;

/// The rank of a process that the same launcher has started on this host and that is stopped (SIGSTOP, a debugger), or
/// nothing. For when MPI cannot be asked.
std::optional<int> stopped_rank();

}  // namespace weightcast
