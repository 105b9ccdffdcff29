#include "weightcast/plan/chunks.hpp"

#include <algorithm>

#include "weightcast/core/error.hpp"

namespace weightcast {

std::vector<Chunk> chunks_of(const TransferPlan& plan, std::uint64_t chunk_bytes) {
  std::vector<Chunk> chunks;
  for (std::size_t from = 0; from < plan.sources.ranks.size(); ++from) {
    for (const auto& piece : plan.sources.ranks[from].pieces) {
      const auto row_bytes =
          piece.slice.columns * element_bytes(plan.model.parameters[piece.parameter_index].info.dtype);
      WEIGHTCAST_EXPECTS(piece.pitch == row_bytes || piece.slice.rows == 1);  // sent from where it is
      const auto most = std::max<std::uint64_t>(chunk_bytes / row_bytes, 1);
      for (std::uint64_t row = 0; row < piece.slice.rows; row += most) {
        auto slice = piece.slice;
        slice.row += row;
        slice.rows = std::min(most, piece.slice.rows - row);
        chunks.push_back({from,
                          piece.offset + row * row_bytes,
                          slice.rows * row_bytes,
                          {piece.parameter_index, slice, 0, row_bytes}});
      }
    }
  }
  std::ranges::stable_sort(chunks, {}, [](const Chunk& chunk) { return chunk.staged.parameter_index; });
  return chunks;
}

std::span<const Chunk> chunks_of(std::span<const Chunk> chunks, const Range& parameters) {
  const auto parameter = [](const Chunk& chunk) { return chunk.staged.parameter_index; };
  const auto begin = std::ranges::lower_bound(chunks, parameters.first, {}, parameter);
  return {begin, std::ranges::lower_bound(begin, chunks.end(), parameters.end(), {}, parameter)};
}

}  // namespace weightcast
