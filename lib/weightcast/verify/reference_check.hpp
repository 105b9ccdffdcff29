#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/reference.hpp"

namespace weightcast {

struct ReferenceCheck {
  std::vector<std::size_t> mismatched;  ///< parameters whose shard differs
  std::optional<std::string> first;     ///< the first of them: parameter, element and both values in words
};

/// Compares every byte of a tp rank's slot with the reference: an independent reader of the same weights, not a digest.
/// Vocabulary padding must be zero. On the host reads both in bounded blocks, on up to `threads` threads; what is on a
/// GPU stays there (compare_on_gpu()), but for the element that `first` shows. Local.
ReferenceCheck check_against_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot,
                                       const Reference& reference, std::size_t threads);

/// Fills a tp rank's slot from the reference: made-up weights on a GPU are made there, all others are read in bounded
/// blocks, on up to `threads` threads. `progress(bytes)` is told what is there; it may be empty.
void fill_from_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot, const Reference& reference,
                         std::size_t threads, const std::function<void(std::uint64_t)>& progress = {});

}  // namespace weightcast
