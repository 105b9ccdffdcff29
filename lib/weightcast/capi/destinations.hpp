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
#include "weightcast/tensor/matrix_layout.hpp"

namespace weightcast {

/// A tensor where somebody else keeps it: a trainer, or an engine.
struct ForeignTensor {
  TensorInfo info;            ///< a parameter's name and this rank's part of it, or a whole engine tensor
  std::byte* data = nullptr;  ///< first element
  Placement placement = {};
  std::vector<std::int64_t> strides_bytes = {};  ///< of each dimension, signed; empty: dense
  /// A trainer's: see TrainingTensor.
  std::vector<std::uint64_t> offsets = {}, full_shape = {};

  bool operator==(const ForeignTensor&) const = default;
};

/// Brings a slot's weights to where another engine keeps its own.
class Destinations {
 public:
  /// For the slots of this rank, which are at `placement`. `plan` must outlive it.
  Destinations(const TransferPlan& plan, std::size_t tp_rank, Placement placement);

  /// Says where the weights go, from the next copy() on: any strides with which no two elements of the table share
  /// memory. A parameter may be given under two names that are tied: each is written, or both are one memory.
  /// Error(config) listing every missing, unknown, repeated, overlapping, mis-shaped and mistyped tensor and all memory
  /// that cannot be used (at most 20, then a count).
  void resolve(std::span<const ForeignTensor> tensors);

  /// Copies a slot to all of them: on the host on all cores of this process, on a GPU by the GPU. Returns when they
  /// hold it. Error(deadline) or Error(unavailable) from a GPU: then their content is unspecified.
  void copy(const Region& slot, Deadline deadline);

 private:
  /// What is dense in the slot at `offset` and lies so at `data`.
  struct Step {
    std::uint64_t offset = 0;
    std::byte* data = nullptr;
    MatrixLayout layout;
  };
  struct Problems;
  /// Where in the slot is what has this name and shape, and which parameters that is.
  std::optional<std::uint64_t> find(const ForeignTensor& tensor, std::vector<std::size_t>& parameters,
                                    Problems& problems) const;
  void check_memory(const ForeignTensor& tensor, std::uint64_t offset, std::vector<const ForeignTensor*>& usable,
                    Problems& problems);
  void copy_on_gpu(const Region& slot, Deadline deadline);

  const TransferPlan* plan_;
  std::size_t tp_rank_;
  Placement placement_;
  std::vector<ForeignTensor> resolved_;  // the table that the steps are of
  std::vector<Step> steps_;
  std::optional<Workers> workers_;
  gpu::Stream stream_;
};

/// Shape of the part of parameter `index` that a tensor-parallel rank holds.
std::vector<std::uint64_t> shard_shape(const TransferPlan& plan, std::size_t tp_rank, std::size_t index);
/// Shape of an engine tensor, as the tensors have it that it is made of: of one dimension, or of two.

}  // namespace weightcast
