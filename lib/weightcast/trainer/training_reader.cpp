#include "weightcast/trainer/training_reader.hpp"

#include <cstring>

namespace weightcast {

void TrainingReader::gather_on_gpu(const TrainingTensor& tensor, const StridedElements& elements,
                                   std::optional<Rounding> rounding, std::byte* to) {
  const Placement placement(MemoryKind::cuda, tensor.placement.gpu);
  const std::scoped_lock turn(mutex_);
  if (stream_.gpu() != placement.gpu) {
    memory_ = Buffer::allocate(placement, 8 * most_elements_, false, "bringing strided tensors together");
    stream_ = gpu::Stream(placement.gpu);
  }
  auto* const dense = memory_.region().data;
  gpu::gather(elements, rounding, dense, bytes_of(tensor), stream_);
  stream_.synchronize(deadline_, "bringing a strided tensor together");
  gpu::download(placement.gpu, to, dense, elements.count * (rounding ? 2 : elements.element_bytes));
}

void TrainingReader::read(const TrainingTensor& tensor, std::uint64_t first, std::uint64_t count,
                          std::optional<Rounding> rounding, std::byte* to, std::vector<std::byte>& given) {
  const auto layout = layout_of(tensor);
  if (on_gpu(tensor) && !layout.dense()) return gather_on_gpu(tensor, elements_of(layout, first, count), rounding, to);
  const auto given_bytes = count * layout.element_bytes;
  const std::byte* from = layout.dense() ? bytes_of(tensor) + first * layout.element_bytes : bytes_of(tensor);
  std::byte* wide = to;
  if (rounding && (on_gpu(tensor) || !layout.dense())) {
    given.resize(4 * most_elements_);
    wide = given.data();
  }
  if (on_gpu(tensor)) {
    gpu::download(tensor.placement.gpu, wide, from, given_bytes);
  } else if (!layout.dense()) {
    gather(elements_of(layout, first, count), wide, from);
  } else if (rounding) {
    wide = const_cast<std::byte*>(from);  // only read from here on
  } else {
    std::memcpy(to, from, given_bytes);
  }
  if (rounding) narrow(rounding->to, to, wide, count, rounding->from);
}

}  // namespace weightcast
