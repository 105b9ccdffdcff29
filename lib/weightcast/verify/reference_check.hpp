#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

/// What reads bytes [offset, offset + destination.size()) of a parameter from a reference.
using ReadReference =
    std::function<void(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination)>;

struct ReferenceCheck {
  std::vector<std::size_t> mismatched;  ///< parameters whose shard differs
  std::optional<std::string> first;     ///< the first of them: parameter, element and both values in words
};

/// Compares every byte of a tp rank's slot with the reference: an independent reader of the same weights, not a digest.
/// Vocabulary padding must be zero. Reads both in bounded blocks, on up to `threads` threads. Local.
ReferenceCheck check_against_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot,
                                       const ReadReference& read, std::size_t threads);

/// Fills a tp rank's slot from the reference, in bounded blocks, on up to `threads` threads; `progress(bytes)` may be
/// empty.
void fill_from_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot, const ReadReference& read,
                         std::size_t threads, const std::function<void(std::uint64_t)>& progress = {});

}  // namespace weightcast
