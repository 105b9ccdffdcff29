#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/reference.hpp"

namespace weightcast {

/// Compares a slot in GPU memory with a reference, where the slot is: made-up weights are made there, all others are
/// read once and uploaded, block by block on up to `threads` threads. Returns the complement of the number of the first
/// byte that differs (gpu::compare()), 0 where none does: in the shard of each parameter, then in each range of
/// padding, which must be zero.
std::vector<std::uint64_t> compare_on_gpu(const TransferPlan& plan, std::size_t tp_rank, const Region& slot,
                                          const Reference& reference, std::size_t threads);

/// Makes a rank's shards of made-up weights in a slot in GPU memory. `progress(bytes)`, which may be empty, is told of
/// each when it is there.
void generate_shards(const TransferPlan& plan, std::size_t tp_rank, const Region& slot, const Reference& reference,
                     const std::function<void(std::uint64_t)>& progress);

}  // namespace weightcast
