#pragma once

#include "choices.hpp"
#include "job.hpp"
#include "weightcast/engine/engine.hpp"

namespace weightcast {

/// Runs `body` on the trainer (`engine` is nullptr) and on the first rank of each replica, with a communicator of just
/// these, while the other engine ranks serve. Ends with Engine::shutdown(): all ranks are back, and all throw what any
/// of them threw. Collective over the job.
void while_serving(const Job& job, Engine* engine, FunctionRef<void(const Communicator& callers)> body);

/// On the first rank of a replica: receives one whole version, at once or, as the seed does, parameter by parameter in
/// the order of the model. Throws the error of a refused update. The result of the last call.
UpdateResult receive_update(Engine& engine, const Model& model, GranularityChoice granularity, std::uint64_t version);

}  // namespace weightcast
