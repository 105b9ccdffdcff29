#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "weightcast/core/digest.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/device/delta_run.hpp"

/// Deltas in host memory (delta.md), block by block or range by range, for whoever brings threads. gpu.hpp has the same
/// for GPUs. Nothing here allocates.
namespace weightcast {

/// Marks what differs in units [first, first + count), of which `before` and `after` have the bits: bit u % 32 of
/// marks[u / 32] is set for each unit u that does; the others stay. Vectorised; thread-safe, also within a word.
void mark_changes(const std::byte* before, const std::byte* after, std::uint64_t first, std::uint64_t count,
                  std::uint32_t* marks) noexcept;

/// How many units of a block are marked; marks[0] belongs to offset 0 of the source.
std::uint64_t count_marked(const DeltaRun& run, std::uint64_t block, const std::uint32_t* marks) noexcept;
/// Writes that many entries of the block, with their bits from `source`.
void encode_block(const DeltaRun& run, std::uint64_t block, const std::uint32_t* marks, const std::byte* source,
                  DeltaEntry* entries) noexcept;

/// A stream as somebody else has written it.
struct StreamView {
  std::span<const DeltaRun> runs;
  std::uint64_t block_count = 0;
  const std::uint64_t* starts = nullptr;
  DeltaEntry* entries = nullptr;
  std::uint64_t capacity = 0;  ///< entries that arrived, at most
};
/// Whether blocks [first, last) are good (delta.md): total, whatever was written.
bool good_blocks(const StreamView& stream, std::uint64_t first, std::uint64_t last) noexcept;
/// Writes the bits of good blocks to a slot; with `swap` the entries get those that were there. `add` is told what that
/// adds to the digest of the parameter of each run.
void apply_blocks(const StreamView& stream, std::uint64_t first, std::uint64_t last, bool swap, std::byte* slot,
                  FunctionRef<void(std::uint64_t parameter_index, const Digest&)> add) noexcept;

}  // namespace weightcast
