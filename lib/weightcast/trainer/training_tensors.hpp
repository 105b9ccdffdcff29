#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

/// One tensor of a training loop, where the loop keeps it: row-major, dense.
struct TrainingTensor {
  TensorInfo info;             ///< its HF name, and what it is there: F32 for masters of BF16 or F16 parameters
  const void* data = nullptr;  ///< on the host, or on `placement.gpu`; aligned as its elements are
  Placement placement = {};
};

/// Brings a training loop's tensors into a source region, parameters at plan.source_offsets: F32 is rounded to BF16 and
/// F16 (see narrow_float.hpp), the parameter's own dtype is copied; any other pair is refused. Memory
/// and threads that it needs are made by the first run() and kept.
class SourceFill {
 public:
  /// `plan` must outlive it.
  explicit SourceFill(const TransferPlan& plan);

  /// `tensors` in any order. Host work runs on all cores of this process; a GPU works on tensors of its own only.
  /// Whatever writes the tensors must be done, also on GPUs. Returns when the region holds them.
  /// Error(bad_data) listing every missing, unknown, duplicate, mis-shaped and mistyped tensor (at most 20, then a
  /// count), or those whose memory cannot be read; then the region is untouched. Error(deadline) from a GPU.
  void run(std::span<const TrainingTensor> tensors, const Region& region, Deadline deadline);
  /// The same for one tensor; the other parameters stay as they are. Its index in the model. Error(bad_data) also for
  /// an lm_head.weight that is tied: its embedding brings it.
  std::size_t put(const TrainingTensor& tensor, const Region& region, Deadline deadline);

 private:
  /// A piece of a parameter, in elements.
  struct Step {
    std::size_t parameter = 0;
    std::uint64_t first = 0, count = 0;
  };
  void match(std::span<const TrainingTensor> tensors);
  void fill(std::span<const TrainingTensor> tensors, const Region& region, Deadline deadline);
  void check_memory(std::span<const TrainingTensor> tensors, const Region& region) const;
  void fill_by_host(const Step& step, const TrainingTensor& tensor, const Region& region,
                    std::vector<std::byte>& staging) const;
  void fill_by_gpu(std::span<const TrainingTensor> tensors, const Region& region, Deadline deadline);

  const TransferPlan* plan_;
  std::vector<Step> steps_;
  std::vector<TensorInfo> matched_;  // the table that match_ belongs to: a loop gives the same one every time
  TensorMatch match_;                // source is -1 for what is not filled
  std::vector<std::vector<std::byte>> staging_;  // by thread, for what goes between host and GPU
  std::optional<Workers> workers_;
  gpu::Stream stream_;             // of the last region's GPU
  std::vector<const void*> from_;  // what copy engines are given
  std::vector<void*> to_;
  std::vector<std::size_t> sizes_;
};

}  // namespace weightcast
