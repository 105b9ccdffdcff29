#include "weightcast/plan/chunks.hpp"

#include <algorithm>

#include "weightcast/core/error.hpp"

namespace weightcast {

std::vector<Chunk> chunks_of(const TransferPlan& plan, std::uint64_t chunk_bytes) {
  std::vector<Chunk> chunks;
  for (const auto& holding : holdings_of(plan.sources)) {
    const auto parameter = holding.piece().parameter_index;
    // Everybody takes it from one; who holds the same takes turns.
    const auto& [from, piece] = holding.holders[parameter % holding.holders.size()];
    const auto row_bytes = piece.slice.columns * element_bytes(plan.model.parameters[parameter].info.dtype);
    WEIGHTCAST_EXPECTS(piece.pitch == row_bytes || piece.slice.rows == 1);  // sent from where it is
    const auto most = std::max<std::uint64_t>(chunk_bytes / row_bytes, 1);
    for (std::uint64_t row = 0; row < piece.slice.rows; row += most) {
      auto slice = piece.slice;
      slice.row += row;
      slice.rows = std::min(most, piece.slice.rows - row);
      chunks.push_back(
          {from, piece.offset + row * row_bytes, slice.rows * row_bytes, {parameter, slice, 0, row_bytes}});
    }
  }
  return chunks;
}

std::span<const Chunk> chunks_of(std::span<const Chunk> chunks, const Range& parameters) {
  const auto parameter = [](const Chunk& chunk) { return chunk.staged.parameter_index; };
  const auto begin = std::ranges::lower_bound(chunks, parameters.first, {}, parameter);
  return {begin, std::ranges::lower_bound(begin, chunks.end(), parameters.end(), {}, parameter)};
}

}  // namespace weightcast
