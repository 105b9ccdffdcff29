#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

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
  /// What people should know of how these weights were read, a line each: what was left out, renamed, rounded.
  virtual std::vector<std::string> notes() const { return {}; }
};

/// The weights of a checkpoint, matched and converted: see CheckpointSource, which it is.
std::unique_ptr<WeightSource> make_checkpoint_source(const Model& model, Checkpoint checkpoint,
                                                     std::span<const std::string> ignore = {});

/// Seeded weights: bits that depend on seed, parameter name and element index only, small finite bf16/fp16/fp32 values.
/// The same seed gives the same weights everywhere, whatever the shard.
std::unique_ptr<WeightSource> make_synthetic_source(const Model& model, std::uint64_t seed);

/// The checkpoint that "synth", "synth:SEED" or a path names: nothing for made-up weights.
std::optional<Checkpoint> open_weights(const std::string& spec);
/// The weights of `spec` (seed 1 by default), which open_weights() has opened. `model` must be the model of that
/// checkpoint; `ignore`: see match_checkpoint().
std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec,
                                          std::optional<Checkpoint> checkpoint, std::span<const std::string> ignore);
/// Both in one.
std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec);

}  // namespace weightcast
