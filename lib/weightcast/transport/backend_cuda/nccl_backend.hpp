#pragma once

#include "weightcast/transport/nccl.hpp"

namespace weightcast {

std::unique_ptr<Transport> make_nccl_sharded();
std::unique_ptr<Transport> make_nccl_broadcast();

}  // namespace weightcast
