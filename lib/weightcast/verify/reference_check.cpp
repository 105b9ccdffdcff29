#include "weightcast/verify/reference_check.hpp"

#include <algorithm>
#include <cstring>

#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_bytes = 4 * 1024 * 1024;

/// Calls visit(slot_offset, reference, size_bytes) for every contiguous piece of a shard.
/// Whole rows of the parameter are read, because a reference is fastest in one piece.
template <typename Visit>
void for_each_block(const TransferPlan& plan, std::size_t tp_rank, std::size_t parameter, const ReadReference& read,
                    const Visit& visit) {
  const auto& shard = plan.ranks[tp_rank].shards[parameter];
  if (shard.size_bytes() == 0) return;
  std::vector<std::byte> block;
  const auto offset = shard.parameter_offset;
  if (shard.contiguous_parameter() && shard.contiguous_destination()) {
    for (std::uint64_t first = 0; first < shard.size_bytes(); first += block_bytes) {
      block.resize(std::min(block_bytes, shard.size_bytes() - first));
      read(parameter, offset + first, block);
      visit(shard.destination_offset + first, block.data(), block.size());
    }
    return;
  }
  const auto step = std::max<std::uint64_t>(block_bytes / shard.parameter_pitch, 1);
  for (std::uint64_t row = 0; row < shard.rows; row += step) {
    const auto rows = std::min(step, shard.rows - row);
    block.resize((rows - 1) * shard.parameter_pitch + shard.row_bytes);
    read(parameter, offset + row * shard.parameter_pitch, block);
    for (std::uint64_t i = 0; i < rows; ++i) {
      visit(shard.destination_offset + (row + i) * shard.destination_pitch, block.data() + i * shard.parameter_pitch,
            shard.row_bytes);
    }
  }
}

std::string describe_difference(const TransferPlan& plan, std::size_t parameter, std::uint64_t slot_offset,
                                const std::byte* held, const std::byte* reference, std::uint64_t size_bytes) {
  const auto& info = plan.model.parameters[parameter].info;
  const auto width = static_cast<std::uint64_t>(std::max(bits(info.dtype) / 8, 1));
  std::uint64_t at = 0;
  while (at < size_bytes && held[at] == reference[at]) ++at;
  at = at / width * width;
  const auto show = [&](const std::byte* element) {
    std::string text = "0x";
    for (std::uint64_t i = width; i-- > 0;) text += fmt::format("{:02x}", static_cast<unsigned>(element[i]));
    if (const auto value = to_float(info.dtype, element)) text += fmt::format(" ({})", *value);
    return text;
  };
  return fmt::format("{}: byte {} of the slot holds {}, the reference {}", info.name, slot_offset + at, show(held + at),
                     show(reference + at));
}

}  // namespace

ReferenceCheck check_against_reference(const TransferPlan& plan, std::size_t tp_rank, std::span<const std::byte> slot,
                                       const ReadReference& read) {
  ReferenceCheck result;
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    bool same = true;
    for_each_block(plan, tp_rank, p, read,
                   [&](std::uint64_t offset, const std::byte* reference, std::uint64_t row_bytes) {
                     if (std::memcmp(slot.data() + offset, reference, row_bytes) == 0) return;
                     same = false;
                     if (!result.first)
                       result.first = describe_difference(plan, p, offset, slot.data() + offset, reference, row_bytes);
                   });
    if (!same) result.mismatched.push_back(p);
  }
  for (const auto& range : plan.ranks[tp_rank].padding) {
    const auto padding = slot.subspan(range.offset, range.size_bytes);
    if (std::all_of(padding.begin(), padding.end(), [](std::byte b) { return b == std::byte{0}; })) continue;
    if (!result.first)
      result.first = fmt::format("vocabulary padding at byte {} of the slot is not zero", range.offset);
  }
  return result;
}

void fill_from_reference(const TransferPlan& plan, std::size_t tp_rank, std::span<std::byte> slot,
                         const ReadReference& read, std::size_t threads,
                         const std::function<void(std::uint64_t)>& progress) {
  parallel_for(plan.model.parameters.size(), threads, [&](std::size_t p) {
    for_each_block(plan, tp_rank, p, read,
                   [&](std::uint64_t offset, const std::byte* reference, std::uint64_t row_bytes) {
                     std::memcpy(slot.data() + offset, reference, row_bytes);
                     if (progress) progress(row_bytes);
                   });
  });
  for (const auto& range : plan.ranks[tp_rank].padding) std::memset(slot.data() + range.offset, 0, range.size_bytes);
}

}  // namespace weightcast
