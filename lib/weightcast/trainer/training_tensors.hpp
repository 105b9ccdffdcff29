#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/model/match_checkpoint.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/tensor/matrix_layout.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/source_claim.hpp"

namespace weightcast {

/// One tensor of a training loop, where the loop keeps it.
struct TrainingTensor {
  TensorInfo info;             ///< its HF name, and what it is there: F32 for masters of BF16 or F16 parameters
  const void* data = nullptr;  ///< first element, on the host or on `placement.gpu`
  Placement placement = {};
  std::vector<std::int64_t> strides_bytes = {};  ///< of each dimension, any, also 0 and negative; empty: dense
};

/// Brings a training loop's tensors into a source region, parameters at plan.source_offset(): the parameter's own dtype
/// is copied; F32 and F16 are rounded for BF16, F32 and BF16 for F16; any other pair is refused. Everything is digested
/// on its way, on a GPU by the kernel that copies or rounds. Memory and threads that it needs are made by the first
/// run() and kept.
class SourceFill {
 public:
  /// `plan` must outlive it.
  explicit SourceFill(const TransferPlan& plan);

  /// `tensors` in any order. Host work runs on all cores of this process; a GPU works on tensors of its own only.
  /// Whatever writes the tensors must be done, also on GPUs. Returns when the region holds them and `claim`, the
  /// region's, has their digests; after an error it does not know what was to be filled. An lm_head.weight that
  /// is tied to the embedding may be left out; one with memory of its own must hold the same.
  /// Error(bad_data) listing every missing, unknown, duplicate, mis-shaped and mistyped tensor (at most 20, then a
  /// count), or those whose memory cannot be read, or a head that differs from its embedding; then the region is
  /// untouched. Error(deadline) from a GPU.
  void run(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim, Deadline deadline);
  /// The same for one tensor, under its own name or one that is tied to it; the other parameters stay as they are. Its
  /// index in the model.
  std::size_t put(const TrainingTensor& tensor, const Region& region, SourceClaim& claim, Deadline deadline);
  /// Error(bad_data) naming the tensor and the parameter that it is tied to when the region holds something else for
  /// it; the same errors as put() for what cannot be read.
  void expect_held(const TrainingTensor& tensor, std::string_view other, const Region& region, Deadline deadline);

 private:
  /// A chunk of a parameter, and its elements.
  struct Step : Chunk {
    std::size_t parameter = 0;
    std::uint64_t first = 0, count = 0;
  };
  /// A thread's memory for what is on its way.
  struct Staging {
    std::vector<std::byte> given, sent, compared;
  };
  /// For what is strided on a GPU and goes to the host: a step at a time.
  struct Gatherer {
    std::mutex mutex;
    gpu::Stream stream;
    Buffer memory;
    Deadline deadline = Deadline::after(0);
  };
  void match(std::span<const TrainingTensor> tensors);
  std::size_t match_one(const TrainingTensor& tensor);
  void fill(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim, Deadline deadline);
  void check_memory(std::span<const TrainingTensor> tensors, const Region& region) const;
  /// Calls `work` for every step on all cores; rethrows the first exception.
  void for_each_step(FunctionRef<void(const Step&, Staging&)> work);
  /// A step's elements as they are sent, in host memory at `to`.
  void bring(const Step& step, const TrainingTensor& tensor, std::byte* to, Staging& staging);
  void fill_by_host(const Step& step, const TrainingTensor& tensor, const Region& region, SourceClaim& claim,
                    Staging& staging);
  void fill_by_gpu(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                   Deadline deadline);
  /// Error(bad_data) unless a tensor holds what `bring_other` brings under the `other` name of that parameter.
  void expect_tied(std::size_t parameter, const TrainingTensor& tensor, std::string_view other,
                   FunctionRef<void(const Step&, std::span<std::byte>, Staging&)> bring_other);

  const TransferPlan* plan_;
  std::vector<Step> steps_;
  std::vector<TensorInfo> matched_;  // the table that match_ belongs to: a loop gives the same one every time
  TensorMatch match_;                // -1 for what is not filled
  std::vector<Staging> staging_;     // by thread
  std::optional<Workers> workers_;
  Gatherer gatherer_;
  std::uint64_t step_elements_ = 0;    // of the largest step
  std::optional<GpuDigests> digests_;  // on the last region's GPU
};

}  // namespace weightcast
