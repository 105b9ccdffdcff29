#pragma once

#include <cstdint>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

/// A rank's shards in pieces that one read brings: whole rows of the parameter, because a reference is fastest in one
/// piece, or a part of a run. By parameter, and in the order of their bytes.
std::vector<Segment> reference_blocks(const RankPlan& rank);

/// From the first byte of a block's first row to the last of its last one, rows so far apart.
constexpr std::uint64_t extent(const Shard& block, std::uint64_t pitch) noexcept {
  return (block.rows - 1) * pitch + block.row_bytes;
}
/// Of the longest block.
std::uint64_t longest_extent(const std::vector<Segment>& blocks, std::uint64_t Segment::*pitch) noexcept;

/// What number a block's first byte has in the shard, counted row after row.
constexpr std::uint64_t first_byte(const Shard& shard, const Shard& block) noexcept {
  const auto from_shard = block.destination_offset - shard.destination_offset;
  return from_shard / shard.destination_pitch * shard.row_bytes + from_shard % shard.destination_pitch;
}

}  // namespace weightcast
