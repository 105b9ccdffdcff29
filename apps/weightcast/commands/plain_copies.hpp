#pragma once

#include <vector>

#include "weightcast/job/job.hpp"
#include "weightcast/job/side.hpp"

namespace weightcast {

/// The ceiling of `bench`: each tp rank of a replica takes as many bytes from each trainer rank as the plan has it
/// take, in one plain copy; all ranks at once, a barrier on both sides. On the host by memcpy, from one trainer rank
/// after the other; on one GPU by its copy engine; across a link half pulled by the engine's GPU and half pushed by the
/// trainer's, which is what the link can do. Further replicas could at best have theirs at the same time. Seconds of
/// each of a few tries, the same number on all ranks. Collective.
std::vector<double> plain_copies(Job& job, Side& side, Placement placement);

}  // namespace weightcast
