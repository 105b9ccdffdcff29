#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "weightcast/trainer/training_tensors.hpp"

namespace weightcast {

/// A stand-in for training: fp32 masters of all parameters of a model, moved by AdamW steps along pseudo-random
/// gradients. With the small learning rates of reinforcement learning only a few percent of the 16-bit weights change
/// in a step.
class AdamW {
 public:
  /// Random masters: norms about 1, all others about 0. With a placement on a GPU it holds a copy of them there, as an
  /// optimiser on a GPU would have them.
  AdamW(const Model& model, Placement placement, double learning_rate = 1e-6);

  /// One step on all parameters. Returns the share of the weights whose bits change when rounded to the model's dtype.
  double step();
  /// The masters, for Trainer::fill(): always the same memory.
  std::span<const TrainingTensor> tensors() const noexcept { return tensors_; }
  /// Tensor `p` of the model rounded to its dtype, one element after the other.
  std::vector<std::byte> rounded(std::size_t p) const;

 private:
  struct Tensor {
    std::vector<float> master, first_moment, second_moment;
    Buffer on_gpu;
  };
  std::uint64_t step_range(std::size_t p, std::uint64_t first, std::uint64_t count);

  std::vector<DType> dtypes_;  // of the tensors
  float learning_rate_;
  std::uint64_t steps_ = 0, elements_ = 0;
  std::vector<Tensor> state_;
  std::vector<TrainingTensor> tensors_;
};

}  // namespace weightcast
