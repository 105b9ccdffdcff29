#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {

/// Where the weights of one version come from: any byte of any parameter of a model, on the host. Thread-safe.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Fills `destination` with bytes [offset, offset + destination.size()) of `model.parameters[parameter]`.
  virtual void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const = 0;
  /// For messages: "checkpoint DIR", "synth:1".
  virtual std::string describe() const = 0;
};

/// The weights of a checkpoint. Error(bad_data) listing every tensor that does not fit `model`; an lm_head.weight that
/// is an alias must equal the embedding bit for bit.
std::unique_ptr<WeightSource> make_checkpoint_source(const Model& model, Checkpoint checkpoint);

/// Seeded weights: bits that depend on seed, parameter name and element index only, small finite bf16/fp16/fp32 values.
/// The same seed gives the same weights everywhere, whatever the shard.
std::unique_ptr<WeightSource> make_synthetic_source(const Model& model, std::uint64_t seed);

/// "synth", "synth:SEED" (seed 1 by default) or the path of a checkpoint. `model` must be the model of that checkpoint.
std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec);

}  // namespace weightcast
