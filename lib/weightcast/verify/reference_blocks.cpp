#include "weightcast/verify/reference_blocks.hpp"

#include <algorithm>

namespace weightcast {

std::vector<Segment> reference_blocks(const RankPlan& rank) {
  constexpr std::uint64_t block_bytes = 4 * mebibyte;
  std::vector<Segment> blocks;
  for (const auto& shard : rank.shards) {
    if (shard.size_bytes() == 0) continue;
    const Segment whole{shard, 0, shard.parameter_offset, shard.parameter_pitch};
    const auto kept = std::max<std::uint64_t>(block_bytes / shard.parameter_pitch, 1) * shard.row_bytes;
    for (BlockCursor cursor(whole, whole.contiguous() ? block_bytes : kept); !cursor.done(); cursor.next())
      blocks.push_back(cursor.block());
  }
  return blocks;
}

std::uint64_t longest_extent(const std::vector<Segment>& blocks, std::uint64_t Segment::*pitch) noexcept {
  std::uint64_t bytes = 0;
  for (const auto& block : blocks) bytes = std::max(bytes, extent(block, block.*pitch));
  return bytes;
}

}  // namespace weightcast
