#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

/// Whole rows of a piece, for transports that send everything to everybody.
struct Chunk {
  std::size_t from = 0;  ///< trainer rank
  std::uint64_t source_offset = 0, size_bytes = 0;
  Piece staged;  ///< as it lies in a buffer of its own, from offset 0
};
/// All of it, by parameter, in chunks of at most `chunk_bytes` (a row may be longer).
std::vector<Chunk> chunks_of(const TransferPlan& plan, std::uint64_t chunk_bytes);
/// The same of all that one trainer rank has, where it has it; `from` is still who speaks for it (Holding::speaker()).
std::vector<Chunk> chunks_held(const TransferPlan& plan, std::size_t trainer_rank, std::uint64_t chunk_bytes);
/// Of parameters [first, first + count).
std::span<const Chunk> chunks_of(std::span<const Chunk> chunks, const Range& parameters);

}  // namespace weightcast
