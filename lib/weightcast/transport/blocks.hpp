#pragma once

#include <algorithm>
#include <vector>

#include "weightcast/device/gpu.hpp"
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

/// Consecutive parameters [first, first + count).
struct Part {
  std::size_t first = 0, count = 0;
};

/// Cuts what a tp rank receives into parts of at least `part_bytes` each (but the last), so that one can be looked at
/// while the next is under way. The same on all ranks.
inline std::vector<Part> parts_of(const TransferPlan& plan, std::size_t tp_rank, std::uint64_t part_bytes) {
  const auto& shards = plan.ranks[tp_rank].shards;
  std::vector<Part> parts;
  std::uint64_t bytes = 0;
  for (std::size_t p = 0, first = 0; p < shards.size(); ++p) {
    bytes += shards[p].size_bytes();
    if (bytes < part_bytes && p + 1 < shards.size()) continue;
    parts.push_back({first, p + 1 - first});
    first = p + 1;
    bytes = 0;
  }
  return parts;
}

/// Cuts a copy into tasks of about 256 KiB, one for each thread block. Rows are cut only where both sides are
/// contiguous: each row is one warp's.
inline void add_copy_tasks(std::vector<gpu::CopyTask>& tasks, const Segment& copy) {
  constexpr std::uint64_t block_bytes = 256 * 1024, run_bytes = 8 * 1024;
  const auto add = [&](const Segment& part) {
    const auto step = std::max<std::uint64_t>(block_bytes / part.row_bytes, 1);
    for (std::uint64_t row = 0; row < part.rows; row += step) {
      tasks.push_back({part.source + row * part.source_pitch, part.destination + row * part.destination_pitch,
                       part.source_pitch, part.destination_pitch, part.row_bytes, std::min(step, part.rows - row)});
    }
  };
  if (copy.size_bytes() == 0) return;
  if (!copy.contiguous_source() || !copy.contiguous_destination()) return add(copy);
  const auto runs = copy.size_bytes() / run_bytes, done = runs * run_bytes, rest = copy.size_bytes() - done;
  if (runs != 0) add({copy.source, copy.destination, run_bytes, runs, run_bytes, run_bytes});
  if (rest != 0) add({copy.source + done, copy.destination + done, rest, 1, rest, rest});
}

}  // namespace weightcast
