#include "weightcast/transport/blocks.hpp"

#include "weightcast/core/bytes.hpp"

namespace weightcast {

std::vector<Part> parts_of(const TransferPlan& plan, std::size_t tp_rank) {
  const auto& shards = plan.ranks[tp_rank].shards;
  auto left = plan.ranks[tp_rank].received_bytes;
  const auto smallest_bytes = std::min(64 * mebibyte, left / 8);
  // What is larger than that cannot be cut, so it must not come last: the walk begins with it.
  const auto large = std::find_if(shards.rbegin(), shards.rend(),
                                  [&](const Segment& shard) { return shard.size_bytes() > smallest_bytes; });
  const std::size_t count = shards.size(), begin = large == shards.rend() ? 0 : shards.rend() - large - 1;
  std::vector<std::pair<std::uint64_t, Part>> parts;  // with their sizes
  Part part{begin, 0};
  std::uint64_t bytes = 0;
  for (std::size_t walked = 1; walked <= count; ++walked) {
    ++part.count;
    const auto next = part.first + part.count;
    bytes += shards[next - 1].size_bytes();
    const auto target = plan.dp > 1 ? smallest_bytes : std::max(left / 2, smallest_bytes);
    if (bytes < target && next < count && walked < count) continue;
    parts.emplace_back(bytes, part);
    left -= bytes;
    part = {next % count, 0};
    bytes = 0;
  }
  std::ranges::stable_sort(parts, std::greater(), [](const auto& sized) { return sized.first; });
  std::vector<Part> result;
  for (const auto& sized : parts) result.push_back(sized.second);
  return result;
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
