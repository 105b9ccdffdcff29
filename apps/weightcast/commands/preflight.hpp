#pragma once

#include "options/update_options.hpp"
#include "weightcast/job/job.hpp"

namespace weightcast {

/// Shows ranks, hosts, cores, memory and devices, and which transports all ranks could use, and what about containers
/// is in MPI's way (container_notes()); moves nothing. Returns the exit status.
int run_preflight(const UpdateOptions& options, Job& job);

}  // namespace weightcast
