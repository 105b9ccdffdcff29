#include "weightcast/comm/mpi_library.hpp"

#include <array>

namespace weightcast {

MpiState mpi_state() noexcept {
  int initialised = 0, finalized = 0, level = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalized);
  if (finalized != 0) return MpiState::finalized;
  if (initialised == 0) return MpiState::not_begun;
  MPI_Query_thread(&level);
  return level < MPI_THREAD_SERIALIZED ? MpiState::single_threaded : MpiState::running;
}

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  return std::string(text.data(), static_cast<std::size_t>(length));
}

void initialise_mpi(int* argc, char*** argv) {
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
}

void finalize_mpi() {
  check_mpi(MPI_Finalize(), "MPI_Finalize");
}

std::optional<MPI_Comm> foreign_communicator(int handle) {
  static_assert(sizeof(MPI_Fint) == sizeof(int));
  const auto comm = MPI_Comm_f2c(handle);
  if (comm == MPI_COMM_NULL || comm == MPI_Comm{}) return std::nullopt;
  return comm;
}

}  // namespace weightcast
