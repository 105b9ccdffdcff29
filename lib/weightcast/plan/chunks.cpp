#include "weightcast/plan/chunks.hpp"

#include <algorithm>

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

/// Appends a piece that `from` speaks for.
void append(const TransferPlan& plan, const Piece& piece, std::size_t from, std::uint64_t chunk_bytes,
            std::vector<Chunk>& chunks) {
  const auto parameter = piece.parameter_index;
  const auto row_bytes = piece.slice.columns * element_bytes(plan.model.parameters[parameter].info.dtype);
  WEIGHTCAST_EXPECTS(piece.pitch == row_bytes || piece.slice.rows == 1);  // sent from where it is
  const auto most = std::max<std::uint64_t>(chunk_bytes / row_bytes, 1);
  for (std::uint64_t row = 0; row < piece.slice.rows; row += most) {
    auto slice = piece.slice;
    slice.row += row;
    slice.rows = std::min(most, piece.slice.rows - row);
    chunks.push_back({from, piece.offset + row * row_bytes, slice.rows * row_bytes, {parameter, slice, 0, row_bytes}});
  }
}

}  // namespace

std::vector<Chunk> chunks_of(const TransferPlan& plan, std::uint64_t chunk_bytes) {
  std::vector<Chunk> chunks;
  for (const auto& holding : holdings_of(plan.sources)) {
    const auto& [from, piece] = holding.speaker();
    append(plan, piece, from, chunk_bytes, chunks);
  }
  return chunks;
}

std::vector<Chunk> chunks_held(const TransferPlan& plan, std::size_t trainer_rank, std::uint64_t chunk_bytes) {
  std::vector<Chunk> chunks;
  for (const auto& holding : holdings_of(plan.sources)) {
    for (const auto& [holder, piece] : holding.holders) {
      if (holder == trainer_rank) append(plan, piece, holding.speaker().from, chunk_bytes, chunks);
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
