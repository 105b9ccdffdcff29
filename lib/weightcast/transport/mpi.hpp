#pragma once

#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// Host memory, any hosts, exact shards: each leaves the trainer once for each tp rank; with dp > 1 a replica passes
/// what arrives on to the next one. Contiguous shards are sent from where they are, strided ones through bounded pack
/// buffers.
std::unique_ptr<Transport> make_mpi_sharded();

/// Host memory, any hosts, the seed's way: MPI broadcasts every full parameter to everybody, engines slice on arrival.
std::unique_ptr<Transport> make_mpi_broadcast();

}  // namespace weightcast
