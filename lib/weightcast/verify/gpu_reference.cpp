#include "weightcast/verify/gpu_reference.hpp"

#include "weightcast/core/parallel.hpp"
#include "weightcast/verify/reference_blocks.hpp"

namespace weightcast {
namespace {

ParameterRows rows_of(const Shard& shard) noexcept {
  return {shard.parameter_offset, shard.parameter_pitch, shard.destination_pitch, shard.row_bytes, shard.rows};
}

/// A thread's way for blocks of a reference to a GPU.
struct Upload {
  Staging read;
  Buffer uploaded;
  gpu::Stream stream;  // last: it may still be at work with the memory above

  Upload(const Region& slot, std::uint64_t block_bytes)
      : read(slot, block_bytes),
        uploaded(Buffer::allocate({MemoryKind::cuda, slot.gpu}, block_bytes, false, "blocks of a reference")),
        stream(slot.gpu) {}
};

void compare_uploaded(const RankPlan& rank, const Region& slot, const Reference& reference, std::size_t threads,
                      std::uint64_t* differences) {
  const auto blocks = reference_blocks(rank);
  const auto longest = longest_extent(blocks, &Segment::parameter_pitch);
  const auto compare = [&](const Upload& own, std::size_t index) {
    const auto& block = blocks[index];
    const auto read = own.read.first(extent(block, block.parameter_pitch));
    reference.look_around();
    reference.read(block.parameter_index, block.parameter_offset, read);
    write_region(own.uploaded.region(), 0, read);
    gpu::compare(own.uploaded.region().data, rows_of(block), slot.data + block.destination_offset,
                 first_byte(rank.shards[block.parameter_index], block), differences + block.parameter_index,
                 own.stream);
    own.stream.synchronize(Deadline::after(longest_gpu_s(read.size())), "comparing weights",
                           [&] { reference.look_around(); });
  };
  parallel_for(
      blocks.size(), threads, [&] { return Upload(slot, longest); }, compare);
}

}  // namespace

std::vector<std::uint64_t> compare_on_gpu(const TransferPlan& plan, std::size_t tp_rank, const Region& slot,
                                          const Reference& reference, std::size_t threads) {
  const auto& rank = plan.ranks[tp_rank];
  const auto parameters = rank.shards.size();
  std::vector<std::uint64_t> differences(parameters + rank.padding.size());
  const auto bytes = std::as_writable_bytes(std::span(differences));
  const auto on_gpu = Buffer::allocate({MemoryKind::cuda, slot.gpu}, bytes.size(), false, "where weights differ");
  auto* const first = reinterpret_cast<std::uint64_t*>(on_gpu.region().data);
  const gpu::Stream stream(slot.gpu);
  for (std::size_t i = 0; i < rank.padding.size(); ++i) {
    const auto& [offset, size_bytes] = rank.padding[i];
    const ParameterRows all{0, size_bytes, size_bytes, size_bytes, 1};
    gpu::compare(WordGenerator{}, all, slot.data + offset, 0, first + parameters + i, stream);
  }
  for (std::size_t p = 0; p < reference.generators.size(); ++p) {
    gpu::compare(reference.generators[p], rows_of(rank.shards[p]), slot.data + rank.shards[p].destination_offset, 0,
                 first + p, stream);
  }
  stream.synchronize(Deadline::after(longest_gpu_s(slot.size_bytes)), "comparing weights",
                     [&] { reference.look_around(); });
  if (reference.generators.empty()) compare_uploaded(rank, slot, reference, threads, first);
  read_region(on_gpu.region(), 0, bytes);
  return differences;
}

void generate_shards(const TransferPlan& plan, std::size_t tp_rank, const Region& slot, const Reference& reference,
                     const std::function<void(std::uint64_t)>& progress) {
  const gpu::Stream stream(slot.gpu);
  for (const auto& shard : plan.ranks[tp_rank].shards) {
    gpu::generate(reference.generators[shard.parameter_index], rows_of(shard), slot.data + shard.destination_offset,
                  stream);
    stream.synchronize(Deadline::after(longest_gpu_s(shard.size_bytes())), "making weights",
                       [&] { reference.look_around(); });
    if (progress) progress(shard.size_bytes());
  }
}

}  // namespace weightcast
