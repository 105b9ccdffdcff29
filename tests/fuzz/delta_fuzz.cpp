// The input is a stream of a delta as it arrives from another rank, behind a byte for the shape of its runs. It is
// refused, or it can be applied to a slot, leaves what is not in its runs alone, and undoes itself.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "weightcast/delta/host_delta.hpp"

using namespace weightcast;

namespace {

/// Two runs of one parameter each: short rows with gaps, then one long row.
std::vector<DeltaRun> runs_of(std::uint8_t shape) {
  DeltaRun rows;
  rows.row_units = 1 + shape % 16;
  rows.rows = 1 + shape / 16;
  rows.source_pitch = rows.slot_pitch = rows.parameter_pitch = 2 * rows.row_units + 4;
  DeltaRun row;
  row.first_block = rows.block_count();
  row.slot = row.source = row.offset = rows.rows * rows.slot_pitch;
  row.row_units = 4096 + shape;
  row.rows = 1;
  row.parameter_index = 1;
  return {rows, row};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto runs = runs_of(data[0]);
  const auto blocks = runs.back().first_block + runs.back().block_count();
  std::vector<std::uint64_t> starts(blocks + 1);
  if (size - 1 < 8 * starts.size()) return 0;
  std::memcpy(starts.data(), data + 1, 8 * starts.size());
  const auto left = size - 1 - 8 * starts.size();
  std::vector<DeltaEntry> entries(left / sizeof(DeltaEntry));
  if (!entries.empty()) std::memcpy(entries.data(), data + 1 + 8 * starts.size(), 4 * entries.size());
  const StreamView stream{runs, blocks, starts.data(), entries.data(), entries.size()};
  if (!good_blocks(stream, 0, blocks)) return 0;
  if (starts.back() > entries.size()) std::abort();
  const auto slot_bytes = runs.back().slot + 2 * runs.back().row_units;
  std::vector<std::byte> slot(slot_bytes, std::byte{0x5a});
  const auto before = slot;
  Digest sum;
  const auto add = [&](std::uint64_t, const Digest& change) { sum += change; };
  apply_blocks(stream, 0, blocks, true, slot.data(), add);
  const auto written = static_cast<std::uint64_t>(
      std::inner_product(slot.begin(), slot.end(), before.begin(), std::uint64_t{0}, std::plus<>(),
                         [](std::byte a, std::byte b) { return std::uint64_t{a != b}; }));
  if (written > 2 * starts.back()) std::abort();
  apply_blocks(stream, 0, blocks, true, slot.data(), add);
  if (slot != before || sum != Digest{}) std::abort();
  return 0;
}
