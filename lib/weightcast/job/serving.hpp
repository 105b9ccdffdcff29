#pragma once

#include "weightcast/engine/engine.hpp"
#include "weightcast/job/job.hpp"

namespace weightcast {

/// Runs `body` on the trainer (`engine` is nullptr) and on the first rank of each replica, with a communicator of just
/// these, while the other engine ranks serve. Ends with Engine::shutdown(): all ranks are back, and all throw what any
/// of them threw. Collective over the job.
void while_serving(const Job& job, Engine* engine, FunctionRef<void(const Communicator& callers)> body);

}  // namespace weightcast
