#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/model/match_checkpoint.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

/// A checkpoint as the weights of a model: matched, and converted to the model's dtype where it has another one.
class CheckpointSource final : public WeightSource {
 public:
  /// Errors as match_checkpoint() has them; Error(bad_data) for an lm_head.weight that is an alias and differs from the
  /// embedding.
  CheckpointSource(const Model& model, Checkpoint checkpoint, std::span<const std::string> ignore);

  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override;
  std::string describe() const override { return "checkpoint " + checkpoint_.path(); }
  std::vector<std::string> notes() const override;

  const Checkpoint& checkpoint() const noexcept { return checkpoint_; }
  const CheckpointMatch& match() const noexcept { return match_; }

 private:
  /// Bytes of tensor `index`, as the weights of type `dtype` that they are or become.
  void read_as(DType dtype, std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;
  void check_alias(const TensorInfo& embedding) const;

  std::vector<DType> dtypes_;  // of the model's parameters
  Checkpoint checkpoint_;
  CheckpointMatch match_;
};

/// The config of a checkpoint's model, from the config.json in its folder; the tensors say the dtype where it does not.
/// `notes` gets what should be known. Error(no_input) when there is none, otherwise as load_model_config() has them.
ModelConfig config_of(const Checkpoint& checkpoint, std::vector<std::string>& notes);

}  // namespace weightcast
