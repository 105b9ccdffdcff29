#pragma once

#include "weightcast/transport/transport.hpp"

/// One host: engines map the trainer's weights and pull their segments straight into their slot. No staging.
namespace weightcast {

/// For host memory: engines copy.
std::unique_ptr<Transport> make_direct_host();
/// For device memory: engines queue copies on their GPU, contiguous segments by copy engine, strided ones by a kernel.
std::unique_ptr<Transport> make_direct_gpu();

inline std::unique_ptr<Transport> make_direct(MemoryKind memory) {
  return memory == MemoryKind::host ? make_direct_host() : make_direct_gpu();
}

/// The trainer's regions as this rank sees them: the trainer tells all engines how to map them. Collective over the
/// group; may throw on one rank only. Empty on the trainer.
std::vector<Mapping> map_sources(const Peers& peers, const Endpoints& endpoints, Deadline deadline);

}  // namespace weightcast
