#pragma once

#include <cstdint>

#include "weightcast/device/host_device.hpp"

/// How a delta counts what it changes (delta/delta.md), for host and device code alike.
namespace weightcast {

inline constexpr std::uint64_t delta_unit_bytes = 2;      ///< what is changed or not
inline constexpr std::uint64_t delta_block_units = 4096;  ///< of a block at most: an index has 16 bits

/// Rows of a segment in blocks: as many whole rows as a block takes, or, of longer rows, pieces of one. Offsets and
/// pitches are bytes, all of them even.
struct DeltaRun {
  std::uint64_t first_block = 0;                  ///< of the stream
  std::uint64_t source = 0, source_pitch = 0;     ///< in the source region
  std::uint64_t slot = 0, slot_pitch = 0;         ///< in the slot
  std::uint64_t offset = 0, parameter_pitch = 0;  ///< in the parameter
  std::uint64_t row_units = 0, rows = 0;
  std::uint64_t parameter_index = 0;

  WEIGHTCAST_HOST_DEVICE constexpr bool long_rows() const noexcept { return row_units > delta_block_units; }
  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t blocks_per_row() const noexcept {
    return (row_units + delta_block_units - 1) / delta_block_units;
  }
  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t rows_per_block() const noexcept {
    return delta_block_units / row_units;
  }
  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t block_count() const noexcept {
    return long_rows() ? rows * blocks_per_row() : (rows + rows_per_block() - 1) / rows_per_block();
  }
};

/// A block of a run: `rows` times `row_units`, from that row and unit of the run on.
struct DeltaBlock {
  std::uint64_t row = 0, column = 0, row_units = 0, rows = 0;

  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t units() const noexcept { return row_units * rows; }
  /// How far unit `index` is behind the first unit of the run, where rows are so many bytes apart.
  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t place(std::uint64_t index, std::uint64_t pitch) const noexcept {
    if (rows == 1) return row * pitch + (column + index) * delta_unit_bytes;
    return (row + index / row_units) * pitch + (column + index % row_units) * delta_unit_bytes;
  }
};

/// Block `block` of the stream, which is one of this run's.
WEIGHTCAST_HOST_DEVICE constexpr DeltaBlock block_of(const DeltaRun& run, std::uint64_t block) noexcept {
  const std::uint64_t index = block - run.first_block;
  if (run.long_rows()) {
    const std::uint64_t column = index % run.blocks_per_row() * delta_block_units, left = run.row_units - column;
    return {index / run.blocks_per_row(), column, left < delta_block_units ? left : delta_block_units, 1};
  }
  const std::uint64_t row = index * run.rows_per_block(), left = run.rows - row;
  return {row, 0, run.row_units, left < run.rows_per_block() ? left : run.rows_per_block()};
}

/// The run that a block is of; `count` runs, ascending.
WEIGHTCAST_HOST_DEVICE constexpr const DeltaRun& run_of(const DeltaRun* runs, std::uint64_t count,
                                                        std::uint64_t block) noexcept {
  std::uint64_t low = 0;
  for (std::uint64_t high = count; high - low > 1;) {
    const std::uint64_t middle = (low + high) / 2;
    (runs[middle].first_block <= block ? low : high) = middle;
  }
  return runs[low];
}

/// A change: the unit's number in its block, and its new bits.
struct alignas(4) DeltaEntry {
  std::uint16_t index = 0, value = 0;
};

}  // namespace weightcast
