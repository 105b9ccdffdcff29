#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/delta/source_changes.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/trainer/fill_threads.hpp"
#include "weightcast/trainer/quantized_fill.hpp"
#include "weightcast/trainer/training_pieces.hpp"
#include "weightcast/trainer/training_reader.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/source_claim.hpp"

namespace weightcast {

/// Brings a training loop's tensors into the source region of a trainer rank, each to the piece that it is: the
/// parameter's own dtype is copied; F32 and F16 are rounded for BF16, F32 and BF16 for F16, all three for the F8_E4M3
/// of a quantised model, with scales (see QuantizedFill); any other pair is refused. Everything is digested on its way,
/// on a GPU by the kernel that copies or rounds. Memory and threads that it needs are made by the first run() and kept.
class SourceFill {
 public:
  /// `plan` must outlive it.
  SourceFill(const TransferPlan& plan, std::size_t trainer_rank);

  /// `tensors`: all pieces of this rank, in any order. Host work runs on all cores of this process; a GPU works on
  /// tensors of its own only. Whatever writes the tensors must be done, also on GPUs. Returns when the region holds
  /// them and `claim`, the region's, has their digests; after an error it does not know what was to be filled. What
  /// changes is marked in `changes`, the region's, unless it knows no version; it forgets that where a GPU's region is
  /// filled from anything but dense tensors on that GPU, of its own dtype or F32 for 16 bits. An
  /// lm_head.weight that is tied to the embedding may be left out; one with memory of its own must hold the same.
  /// Error(bad_data) of match_pieces(), or listing those whose memory cannot be read, or for a head that differs from
  /// its embedding; then the region is untouched. Error(deadline) from a GPU.
  void run(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim, SourceChanges& changes,
           Deadline deadline);
  /// The same for one tensor, under its own name or one that is tied to it; the other pieces stay as they are. Which
  /// piece it is, of several the first, which are its scales, too; nothing, and nothing is done, of a tensor without
  /// elements. The claim does not
  /// know a parameter of which this rank has other pieces, too: it is digested when it is sent.
  std::optional<std::size_t> put(const TrainingTensor& tensor, const Region& region, SourceClaim& claim,
                                 SourceChanges& changes, Deadline deadline);
  /// Error(bad_data) naming the tensor and the parameter that it is tied to when the region holds something else for
  /// it; the same errors as put() for what cannot be read.
  void expect_held(const TrainingTensor& tensor, std::string_view other, const Region& region, Deadline deadline);

 private:
  /// A chunk of a piece, and its elements, counted in the piece.
  struct Step : Chunk {
    std::size_t piece_index = 0;
    std::uint64_t first = 0, count = 0;
  };
  /// What match_ belongs to, of one tensor.
  struct Known {
    TensorInfo info;
    std::vector<std::uint64_t> offsets, full_shape;
  };
  /// A thread's memory for what is on its way.
  struct Staging {
    std::vector<std::byte> given, sent, compared;
  };
  std::span<const Piece> pieces() const noexcept { return plan_->sources.ranks[trainer_rank_].pieces; }
  const TensorInfo& parameter_of(std::size_t piece_index) const noexcept {
    return plan_->model.parameters[pieces()[piece_index].parameter_index].info;
  }
  void match(std::span<const TrainingTensor> tensors);
  std::optional<std::size_t> match_one(const TrainingTensor& tensor);
  /// The tensor that is a piece, or nullptr.
  const TrainingTensor* tensor_of(std::size_t piece_index, std::span<const TrainingTensor> tensors) const noexcept;
  void fill(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim, SourceChanges& changes,
            Deadline deadline);
  void check_memory(std::span<const TrainingTensor> tensors, const Region& region) const;
  /// Calls `work` for every step on all cores.
  void for_each_step(FunctionRef<void(const Step&, Staging&)> work);
  /// A step's elements as they are sent, in host memory at `to`.
  void bring(const Step& step, const TrainingTensor& tensor, std::byte* to, Staging& staging);
  void fill_by_host(const Step& step, const TrainingTensor& tensor, const Region& region, SourceClaim& claim,
                    std::uint32_t* marks, Staging& staging);
  void fill_by_gpu(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                   std::uint32_t* marks, Deadline deadline);
  /// Whether it is rounded or copied by the kernel that digests.
  bool by_one_kernel(std::size_t piece_index, const TrainingTensor& tensor) const;
  /// What was filled is known, if it is all that this rank has of a parameter.
  void complete(std::span<const TrainingTensor> tensors, SourceClaim& claim) const;
  /// Error(bad_data) unless a tensor holds what `bring_other` brings under the `other` name of that piece.
  void expect_tied(std::size_t piece_index, const TrainingTensor& tensor, std::string_view other,
                   FunctionRef<void(const Step&, std::span<std::byte>, Staging&)> bring_other);

  const TransferPlan* plan_;
  std::size_t trainer_rank_;
  std::vector<Step> steps_;
  std::vector<Known> matched_;  // the table that match_ belongs to: a loop gives the same one every time
  PieceMatch match_;            // -1 for what is not filled
  FillThreads threads_;
  std::vector<Staging> staging_;  // by thread
  QuantizedFill quantized_;
  std::uint64_t step_elements_ = 0;  // of the largest step
  std::optional<TrainingReader> reader_;
  std::optional<GpuDigests> digests_;  // on the last region's GPU
};

}  // namespace weightcast
