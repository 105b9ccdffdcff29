#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "weightcast/device/gpu.hpp"
#include "weightcast/device/quantize.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/trainer/fill_threads.hpp"
#include "weightcast/trainer/training_reader.hpp"
#include "weightcast/verify/source_claim.hpp"

namespace weightcast {

/// Brings matrices of a training loop into the source region of a trainer rank as fp8, each with its scales
/// (device/quantize.md): the part of SourceFill that is about engines in fp8. Pieces are made in bands of rows that
/// have their scales to themselves. Memory is taken by the first call of either kind and kept.
class QuantizedFill {
 public:
  /// `plan` must outlive it.
  QuantizedFill(const TransferPlan& plan, std::size_t trainer_rank);

  /// Makes what a match says is quantised, on all cores, but for tensors on the GPU of the region: a band is digested
  /// for the claim of its piece and of its scales, and what changes is marked (nullptr: nothing is), before it leaves
  /// the cache. The claim has forgotten both parameters before. Error(deadline) from a GPU.
  void by_host(std::span<const TrainingTensor> tensors, const PieceMatch& match, const Region& region,
               SourceClaim& claim, std::uint32_t* marks, Deadline deadline, FillThreads& threads);
  /// Queues the making of one piece of the region and its scales, of a tensor on the stream's GPU, which is the
  /// region's; `first_element` is the piece's first in the tensor.
  void by_gpu(const PieceMatch::Quantized& piece, const TrainingTensor& tensor, std::uint64_t first_element,
              const Region& region, const gpu::Stream& stream);

 private:
  /// Whole rows of a piece that have their scales to themselves, and these.
  struct Band {
    std::size_t piece_index = 0;
    Chunk elements, scales;
    std::uint64_t first = 0;  ///< of its elements, counted in the piece
  };
  /// A thread's memory for what is on its way.
  struct Staging {
    std::vector<std::byte> given, elements;
    std::vector<float> scales;
  };
  void add_bands(std::size_t piece_index, const Chunk& matrix, const Chunk& scales);
  void fill(const Band& band, const TrainingTensor& tensor, std::uint64_t first_element, const Region& region,
            SourceClaim& claim, std::uint32_t* marks, Staging& staging);
  std::span<const Band> bands_of(std::size_t piece_index) const noexcept;

  ScaleKind kind_ = ScaleKind::block;
  std::vector<Band> bands_;                            // by piece
  std::uint64_t most_elements_ = 0, most_scales_ = 0;  // of a band
  std::optional<TrainingReader> reader_;
  std::vector<Staging> staging_;  // by thread
  Buffer gathered_;               // on a GPU, a band's elements
};

}  // namespace weightcast
