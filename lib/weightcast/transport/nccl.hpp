#pragma once

#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// Device memory, any hosts, one GPU for each rank, over NCCL.
/// sharded: each shard is broadcast once over the trainer and the engine ranks that hold it (one for each replica), by
/// a communicator for each tp rank: contiguous segments from where they are, strided ones through a bounded pack buffer
/// that is filled while the one before is on its way.
/// broadcast: the seed's way, every full parameter to everybody, sliced on arrival.
/// Error(config) on builds without NCCL.
std::unique_ptr<Transport> make_nccl_sharded();
std::unique_ptr<Transport> make_nccl_broadcast();

}  // namespace weightcast
