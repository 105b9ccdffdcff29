#include "weightcast/verify/reference_check.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_bytes = 4 * 1024 * 1024;

/// A rank's shards in pieces that one read brings: whole rows of the parameter, because a reference is fastest in one
/// piece, or a part of a run. By parameter, and in the order of their bytes.
std::vector<Segment> blocks_of(const RankPlan& rank) {
  std::vector<Segment> blocks;
  for (const auto& shard : rank.shards) {
    if (shard.size_bytes() == 0) continue;
    const Segment whole{shard, 0, shard.parameter_offset, shard.parameter_pitch};
    const auto kept = std::max<std::uint64_t>(block_bytes / shard.parameter_pitch, 1) * shard.row_bytes;
    for (BlockCursor cursor(whole, whole.contiguous() ? block_bytes : kept); !cursor.done(); cursor.next())
      blocks.push_back(cursor.block());
  }
  return blocks;
}

/// From the first byte of the first row to the last of the last one.
std::uint64_t extent(const Segment& block, std::uint64_t pitch) noexcept {
  return (block.rows - 1) * pitch + block.row_bytes;
}

/// A thread's memory for a block of the reference, and of a slot that the host cannot read.
struct Blocks {
  Staging reference, held;
  Blocks(const Region& slot, const std::vector<Segment>& blocks)
      : reference({}, longest(blocks, &Segment::parameter_pitch)),
        held(slot, slot.kind == MemoryKind::host ? 0 : longest(blocks, &Segment::destination_pitch)) {}
  static std::uint64_t longest(const std::vector<Segment>& blocks, std::uint64_t Segment::*pitch) {
    std::uint64_t bytes = 0;
    for (const auto& block : blocks) bytes = std::max(bytes, extent(block, block.*pitch));
    return bytes;
  }
};

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

ReferenceCheck check_against_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot,
                                       const ReadReference& read, std::size_t threads) {
  const auto blocks = blocks_of(plan.ranks[tp_rank]);
  std::vector<char> differs(plan.model.parameters.size());
  std::optional<std::string> first;
  std::size_t first_block = blocks.size();
  std::mutex mutex;
  const auto compare = [&](const Blocks& own, std::size_t index) {
    const auto& block = blocks[index];
    const auto reference = own.reference.first(extent(block, block.parameter_pitch));
    read(block.parameter_index, block.parameter_offset, reference);
    const std::byte* held = slot.data + block.destination_offset;
    if (slot.kind != MemoryKind::host) {
      const auto copy = own.held.first(extent(block, block.destination_pitch));
      read_region(slot, block.destination_offset, copy);
      held = copy.data();
    }
    for (std::uint64_t row = 0; row < block.rows; ++row) {
      const auto* const theirs = reference.data() + row * block.parameter_pitch;
      const auto* const mine = held + row * block.destination_pitch;
      if (std::memcmp(mine, theirs, block.row_bytes) == 0) continue;
      const std::scoped_lock lock(mutex);
      differs[block.parameter_index] = 1;
      if (index >= first_block) return;
      first_block = index;
      first = describe_difference(plan, block.parameter_index, block.destination_offset + row * block.destination_pitch,
                                  mine, theirs, block.row_bytes);
      return;
    }
  };
  parallel_for(
      blocks.size(), threads, [&] { return Blocks(slot, blocks); }, compare);
  ReferenceCheck result{.mismatched = {}, .first = std::move(first)};
  for (std::size_t p = 0; p < differs.size(); ++p) {
    if (differs[p] != 0) result.mismatched.push_back(p);
  }
  std::vector<std::byte> padding;
  for (const auto& range : plan.ranks[tp_rank].padding) {
    padding.resize(range.size_bytes);
    read_region(slot, range.offset, padding);
    if (std::all_of(padding.begin(), padding.end(), [](std::byte b) { return b == std::byte{0}; })) continue;
    if (!result.first)
      result.first = fmt::format("vocabulary padding at byte {} of the slot is not zero", range.offset);
  }
  return result;
}

void fill_from_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot, const ReadReference& read,
                         std::size_t threads, const std::function<void(std::uint64_t)>& progress) {
  const auto blocks = blocks_of(plan.ranks[tp_rank]);
  const bool on_host = slot.kind == MemoryKind::host;
  const auto bring = [&](const Blocks& own, std::size_t index) {
    const auto& block = blocks[index];
    const bool straight = on_host && block.contiguous();
    const auto size_bytes = extent(block, block.parameter_pitch);
    const auto reference =
        straight ? slot.bytes().subspan(block.destination_offset, size_bytes) : own.reference.first(size_bytes);
    read(block.parameter_index, block.parameter_offset, reference);
    if (on_host && !straight) {
      copy_rows(slot.data + block.destination_offset, block.destination_pitch, reference.data(), block.parameter_pitch,
                block.row_bytes, block.rows);
    } else if (!on_host) {
      const auto packed = own.held.first(block.size_bytes());
      copy_rows(packed.data(), block.row_bytes, reference.data(), block.parameter_pitch, block.row_bytes, block.rows);
      const auto runs = block.contiguous_destination() ? 1 : block.rows, run_bytes = block.size_bytes() / runs;
      for (std::uint64_t run = 0; run < runs; ++run)
        write_region(slot, block.destination_offset + run * block.destination_pitch,
                     packed.subspan(run * run_bytes, run_bytes));
    }
    if (progress) progress(block.size_bytes());
  };
  parallel_for(
      blocks.size(), threads, [&] { return Blocks(slot, blocks); }, bring);
  for (const auto& range : plan.ranks[tp_rank].padding)
    write_region(slot, range.offset, std::vector<std::byte>(range.size_bytes));
}

}  // namespace weightcast
