#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "weightcast/device/memory.hpp"
#include "weightcast/device/word_generator.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/source_claim.hpp"

namespace weightcast {

/// Makes what a trainer rank has of made-up weights in its source region on a GPU, and adds the digests of what lies
/// there then to its claim. `generators` are by parameter. `progress(bytes)`, which may be empty, is told of each
/// parameter that is done, and nothing while the GPU works; it throws to give up.
void generate_source(const TransferPlan& plan, std::size_t trainer_rank, std::span<const WordGenerator> generators,
                     const Region& region, SourceClaim& claim, const std::function<void(std::uint64_t)>& progress);

}  // namespace weightcast
