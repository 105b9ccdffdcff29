#pragma once

#include <algorithm>

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

/// Walks a packed shard in blocks of about `block_bytes`: whole rows when its source is strided, any bytes otherwise.
/// Both ends of a transfer make the same blocks.
class BlockCursor {
 public:
  BlockCursor() = default;
  BlockCursor(const Segment& segment, std::uint64_t block_bytes) noexcept
      : total_(segment.size_bytes()), step_(std::max<std::uint64_t>(block_bytes, 1)) {
    if (!segment.contiguous_source()) step_ = std::max<std::uint64_t>(step_ / segment.row_bytes, 1) * segment.row_bytes;
  }
  bool done() const noexcept { return first_ >= total_; }
  std::uint64_t first() const noexcept { return first_; }
  std::uint64_t size_bytes() const noexcept { return std::min(step_, total_ - first_); }
  void next() noexcept { first_ += size_bytes(); }

 private:
  std::uint64_t first_ = 0, total_ = 0, step_ = 1;
};

}  // namespace weightcast
