#include "weightcast/trainer/generate_source.hpp"

#include "weightcast/verify/gpu_digests.hpp"

namespace weightcast {
namespace {

ParameterRows rows_of(const TransferPlan& plan, const Piece& piece) noexcept {
  const auto rows = segment_of(plan.model, piece);
  return {rows.parameter_offset, rows.parameter_pitch, rows.source_pitch, rows.row_bytes, rows.rows};
}

}  // namespace

void generate_source(const TransferPlan& plan, std::size_t trainer_rank, std::span<const WordGenerator> generators,
                     const Region& region, SourceClaim& claim, const std::function<void(std::uint64_t)>& progress) {
  const auto tell = [&](std::uint64_t bytes) {
    if (progress) progress(bytes);
  };
  auto digests = GpuDigests::of_source(plan, region.gpu, trainer_rank);
  digests.begin(region.data);
  const auto& stream = *digests.target().stream;
  for (std::size_t p = 0; p < generators.size(); ++p) {
    std::uint64_t size_bytes = 0;
    for (const auto& piece : plan.sources.ranks[trainer_rank].pieces_of(p)) {
      const auto rows = rows_of(plan, piece);
      gpu::generate(generators[p], rows, region.data + piece.offset, stream);
      size_bytes += rows.row_bytes * rows.rows;
    }
    digests.queue({p, 1}, gpu::Share::all, nullptr);
    stream.synchronize(Deadline::after(longest_gpu_s(size_bytes)), "making weights", [&] { tell(0); });
    tell(size_bytes);
  }
  const auto results = digests.finish(Deadline::after(longest_gpu_s(0)));
  for (std::size_t p = 0; p < generators.size(); ++p) claim.add(p, results);
}

}  // namespace weightcast
