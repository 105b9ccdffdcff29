#include "weightcast/transport/blocks.hpp"

#include "weightcast/core/bytes.hpp"

namespace weightcast {

std::vector<Part> parts_of(const TransferPlan& plan, std::size_t tp_rank) {
  const auto& shards = plan.ranks[tp_rank].shards;
  std::vector<Part> parts;
  std::vector<std::uint64_t> sizes;  // by first parameter
  std::uint64_t left = plan.ranks[tp_rank].received_bytes, bytes = 0;
  const auto smallest_bytes = std::min(64 * mebibyte, left / 8);
  for (std::size_t p = 0, first = 0; p < shards.size(); ++p) {
    bytes += shards[p].size_bytes();
    const auto target = plan.dp > 1 ? smallest_bytes : std::max(left / 2, smallest_bytes);
    if (bytes < target && p + 1 < shards.size()) continue;
    parts.push_back({first, p + 1 - first});
    sizes.resize(first + 1);
    sizes[first] = bytes;
    left -= bytes;
    first = p + 1;
    bytes = 0;
  }
  std::ranges::stable_sort(parts, std::greater(), [&](const Part& part) { return sizes[part.first]; });
  return parts;
}

void add_copy_tasks(std::vector<gpu::CopyTask>& tasks, const Segment& copy) {
  constexpr std::uint64_t block_bytes = 256 * kibibyte, run_bytes = 8 * kibibyte;
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
