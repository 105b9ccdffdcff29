#pragma once

#include <string>
#include <vector>

#include "weightcast/comm/communicator.hpp"

namespace weightcast {

/// What makes Open MPI noisy, slow or crash inside containers, as far as the ranks of this host can see it, each with
/// the variable that ends it: no right to read another rank's memory (no ptrace), a /dev/shm that may not be written, a
/// small one, and one that another container uses too. Collective; each rank is told what it has found itself.
std::vector<std::string> container_notes(const Communicator& world, Deadline deadline);

}  // namespace weightcast
