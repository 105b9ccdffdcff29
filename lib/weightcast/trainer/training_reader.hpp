#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/tensor/matrix_layout.hpp"
#include "weightcast/trainer/training_pieces.hpp"

namespace weightcast {

inline const std::byte* bytes_of(const TrainingTensor& tensor) noexcept {
  return static_cast<const std::byte*>(tensor.data);
}
inline bool on_gpu(const TrainingTensor& tensor) noexcept {
  return tensor.placement.kind == MemoryKind::cuda;
}
/// Of a tensor whose strides describe it.
inline MatrixLayout layout_of(const TrainingTensor& tensor) {
  return *layout_of(tensor.info, tensor.strides_bytes);
}
inline StridedElements elements_of(const MatrixLayout& layout, std::uint64_t first, std::uint64_t count) noexcept {
  return {layout.columns, first, count, layout.row_stride, layout.column_stride, layout.element_bytes};
}

/// Brings elements of a training loop's tensors to the host, wherever and however the loop keeps them. Any thread may
/// read; what is strided on a GPU is read by one at a time. Its memory on a GPU is made when that is first needed.
class TrainingReader {
 public:
  /// Of at most that many elements in one read().
  explicit TrainingReader(std::uint64_t most_elements) : most_elements_(most_elements) {}

  /// By which a GPU must be done. Not while others read.
  void set_deadline(Deadline deadline) noexcept { deadline_ = deadline; }
  /// Elements [first, first + count) of the tensor, row after row, and rounded, to `to`. `given` is memory of this
  /// thread's for those that are to be rounded. Error(deadline) from a GPU.
  void read(const TrainingTensor& tensor, std::uint64_t first, std::uint64_t count, std::optional<Rounding> rounding,
            std::byte* to, std::vector<std::byte>& given);

 private:
  void gather_on_gpu(const TrainingTensor& tensor, const StridedElements& elements, std::optional<Rounding> rounding,
                     std::byte* to);

  std::uint64_t most_elements_;
  std::mutex mutex_;
  gpu::Stream stream_;
  Buffer memory_;
  Deadline deadline_ = Deadline::after(0);
};

}  // namespace weightcast
