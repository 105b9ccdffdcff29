#pragma once

#include <algorithm>
#include <vector>

#include "weightcast/device/gpu.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/transport/transport.hpp"

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

/// Trainer, where the others do the moving: all the work that the witness has.
inline void do_work(const Batch& batch) noexcept {
  while (batch.witness != nullptr && batch.witness->work()) {
  }
}

/// Consecutive parameters [first, first + count).
struct Part {
  std::size_t first = 0, count = 0;
};

/// Cuts what a tp rank receives into parts, so that one is digested, or passed on, while the next is under way; the
/// same on all ranks. A later replica waits for each, so with dp > 1 they are small. Else each has about half of what
/// is left: few are queued, and little is left to digest when the last has arrived. The largest come first.
std::vector<Part> parts_of(const TransferPlan& plan, std::size_t tp_rank);

/// Cuts a copy into tasks of about 256 KiB, one for each thread block. Rows are cut only where both sides are
/// contiguous: each row is one warp's.
void add_copy_tasks(std::vector<gpu::CopyTask>& tasks, const Segment& copy);

}  // namespace weightcast
