#include "output/versions.hpp"

#include <fmt/format.h>
#include <hdf5.h>

#include "weightcast/comm/mpi_library.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast {
namespace {

/// "Open MPI v4.1.4" of "Open MPI v4.1.4, package: ..., ident: ...".
std::string mpi_version() {
  const auto all = mpi_library();
  return all.substr(0, all.find_first_of(",\n"));
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) return "unknown";
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace

ReportVersions versions() {
  return {WEIGHTCAST_VERSION, mpi_version(), gpu::nccl_version(), gpu::cuda_version(), hdf5_version()};
}

std::string version_text() {
  const ReportVersions v = versions();
  return fmt::format("weightcast {}\nMPI        {}\nNCCL       {}\nCUDA       {}\nHDF5       {}\n", v.weightcast, v.mpi,
                     v.nccl, v.cuda, v.hdf5);
}

}  // namespace weightcast
