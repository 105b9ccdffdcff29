#include "weightcast/verify/reference_check.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/verify/gpu_reference.hpp"
#include "weightcast/verify/reference_blocks.hpp"

namespace weightcast {
namespace {

/// As gpu::compare() has it: the complement of the number of the first byte that differs, 0 when none does.
std::uint64_t difference(const std::byte* held, const std::byte* expected, std::uint64_t size_bytes,
                         std::uint64_t first) noexcept {
  if (std::memcmp(held, expected, size_bytes) == 0) return 0;
  return ~(first + static_cast<std::uint64_t>(std::mismatch(held, held + size_bytes, expected).first - held));
}

/// Like compare_on_gpu().
std::vector<std::uint64_t> compare_on_host(const RankPlan& rank, const Region& slot, const Reference& reference,
                                           std::size_t threads) {
  std::vector<std::uint64_t> differences(rank.shards.size() + rank.padding.size());
  const auto note = [&](std::size_t index, std::uint64_t found) {
    const std::atomic_ref least(differences[index]);
    for (auto known = least.load(); known < found && !least.compare_exchange_weak(known, found);) {
    }
  };
  const auto blocks = reference_blocks(rank);
  const auto compare = [&](const Staging& own, std::size_t index) {
    const auto& block = blocks[index];
    const auto expected = own.first(extent(block, block.parameter_pitch));
    reference.look_around();
    reference.read(block.parameter_index, block.parameter_offset, expected);
    const auto first = first_byte(rank.shards[block.parameter_index], block);
    for (std::uint64_t row = 0; row < block.rows; ++row) {
      note(block.parameter_index,
           difference(slot.data + block.destination_offset + row * block.destination_pitch,
                      expected.data() + row * block.parameter_pitch, block.row_bytes, first + row * block.row_bytes));
    }
  };
  const auto longest = longest_extent(blocks, &Segment::parameter_pitch);
  parallel_for(
      blocks.size(), threads, [&] { return Staging(slot, longest); }, compare);
  for (std::size_t i = 0; i < rank.padding.size(); ++i) {
    const auto& [offset, size_bytes] = rank.padding[i];
    const std::vector<std::byte> zeros(size_bytes);
    note(rank.shards.size() + i, difference(slot.data + offset, zeros.data(), size_bytes, 0));
  }
  return differences;
}

/// The element of a shard that byte `number` of it, counted row after row, is part of: here and in the reference.
std::string describe_difference(const TransferPlan& plan, const Shard& shard, std::uint64_t number, const Region& slot,
                                const Reference& reference) {
  const auto& info = plan.model.parameters[shard.parameter_index].info;
  const auto width = static_cast<std::uint64_t>(std::max(bits(info.dtype) / 8, 1));
  const auto row = number / shard.row_bytes, column = number % shard.row_bytes / width * width;
  const auto at = shard.destination_offset + row * shard.destination_pitch + column;
  std::vector<std::byte> held(width), expected(width);
  read_region(slot, at, held);
  reference.read(shard.parameter_index, shard.parameter_offset + row * shard.parameter_pitch + column, expected);
  const auto show = [&](const std::vector<std::byte>& element) {
    std::string text = "0x";
    for (std::uint64_t i = width; i-- > 0;) text += fmt::format("{:02x}", static_cast<unsigned>(element[i]));
    if (const auto value = to_float(info.dtype, element.data())) text += fmt::format(" ({})", *value);
    return text;
  };
  return fmt::format("{}: byte {} of the slot holds {}, the reference {}", info.name, at, show(held), show(expected));
}

/// A thread's memory for a block of the reference, and for its rows without what lies between them.
struct Blocks {
  Staging reference, packed;
  Blocks(const Region& slot, const std::vector<Segment>& blocks)
      : reference(slot, longest_extent(blocks, &Segment::parameter_pitch)),
        packed(slot, slot.kind == MemoryKind::host ? 0 : longest_extent(blocks, &Segment::row_bytes)) {}
};

/// Reads a block of the reference to where the slot has it.
void bring(const Segment& block, const Region& slot, const Reference& reference, const Blocks& own) {
  const bool on_host = slot.kind == MemoryKind::host;
  const auto size_bytes = extent(block, block.parameter_pitch);
  const auto read = on_host && block.contiguous() ? slot.bytes().subspan(block.destination_offset, size_bytes)
                                                  : own.reference.first(size_bytes);
  reference.look_around();
  reference.read(block.parameter_index, block.parameter_offset, read);
  if (on_host) {
    if (!block.contiguous())
      copy_rows(slot.data + block.destination_offset, block.destination_pitch, read.data(), block.parameter_pitch,
                block.row_bytes, block.rows);
    return;
  }
  auto packed = read;
  if (!block.contiguous_source()) {
    packed = own.packed.first(block.size_bytes());
    copy_rows(packed.data(), block.row_bytes, read.data(), block.parameter_pitch, block.row_bytes, block.rows);
  }
  const auto runs = block.contiguous_destination() ? 1 : block.rows, run_bytes = block.size_bytes() / runs;
  for (std::uint64_t run = 0; run < runs; ++run)
    write_region(slot, block.destination_offset + run * block.destination_pitch,
                 packed.subspan(run * run_bytes, run_bytes));
}

}  // namespace

ReferenceCheck check_against_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot,
                                       const Reference& reference, std::size_t threads) {
  const auto& rank = plan.ranks[tp_rank];
  const auto differences = slot.kind == MemoryKind::host ? compare_on_host(rank, slot, reference, threads)
                                                         : compare_on_gpu(plan, tp_rank, slot, reference, threads);
  ReferenceCheck result;
  for (std::size_t p = 0; p < rank.shards.size(); ++p) {
    if (differences[p] == 0) continue;
    result.mismatched.push_back(p);
    if (!result.first) result.first = describe_difference(plan, rank.shards[p], ~differences[p], slot, reference);
  }
  for (std::size_t i = 0; i < rank.padding.size(); ++i) {
    if (!result.first && differences[rank.shards.size() + i] != 0)
      result.first = fmt::format("vocabulary padding at byte {} of the slot is not zero", rank.padding[i].offset);
  }
  return result;
}

void fill_from_reference(const TransferPlan& plan, std::size_t tp_rank, const Region& slot, const Reference& reference,
                         std::size_t threads, const std::function<void(std::uint64_t)>& progress) {
  const auto& rank = plan.ranks[tp_rank];
  if (slot.kind == MemoryKind::cuda && !reference.generators.empty()) {
    generate_shards(plan, tp_rank, slot, reference, progress);
  } else {
    const auto blocks = reference_blocks(rank);
    parallel_for(
        blocks.size(), threads, [&] { return Blocks(slot, blocks); },
        [&](const Blocks& own, std::size_t index) {
          bring(blocks[index], slot, reference, own);
          if (progress) progress(blocks[index].size_bytes());
        });
  }
  for (const auto& range : rank.padding) write_region(slot, range.offset, std::vector<std::byte>(range.size_bytes));
}

}  // namespace weightcast
