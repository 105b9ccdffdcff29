#pragma once

#include <optional>
#include <string>

#include "weightcast/comm/communicator.hpp"

/// The MPI library of this process: what it is, and whether it runs. All of it local.
namespace weightcast {

enum class MpiState {
  not_begun,        ///< not initialised
  single_threaded,  ///< runs, but only one thread may ever call it
  running,          ///< runs, at thread level serialized or multiple
  finalized,
};
MpiState mpi_state() noexcept;
/// Whether this process can, and at its end must, reckon with the other ranks.
inline bool inside_mpi() noexcept {
  return mpi_state() == MpiState::single_threaded || mpi_state() == MpiState::running;
}

/// What it calls itself: "Open MPI v4.1.4, package: ..., ident: ...". Works before MPI is initialised.
std::string mpi_library();

/// MpiEnvironment's two ends, for those who hold it in no scope.
void initialise_mpi(int* argc, char*** argv);
void finalize_mpi();

/// The communicator that MPI_Comm_c2f() calls `handle`, or nothing. It stays its owner's.
std::optional<MPI_Comm> foreign_communicator(int handle);

}  // namespace weightcast
