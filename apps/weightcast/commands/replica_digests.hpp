#pragma once

#include <cstddef>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast {

/// Digest of each parameter as a replica holds it: its shards' digests, copies counted once, summed over its ranks.
/// Collective over `replica` (rank = tp rank); `slot` is this rank's.
std::vector<Digest> digests_of_replica(const Communicator& replica, const TransferPlan& plan, const std::byte* slot,
                                       Deadline deadline);

}  // namespace weightcast
