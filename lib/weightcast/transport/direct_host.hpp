#pragma once

#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// Host memory, one host: engines map the trainer's weights and pull their segments straight into their slot. No staging.
std::unique_ptr<Transport> make_direct_host();

}  // namespace weightcast
