#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/core/digest.hpp"
#include "weightcast/device/word_generator.hpp"
#include "weightcast/model/match_checkpoint.hpp"

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
  /// The digest that each parameter must have; empty where nobody says. read() does not look at it.
  virtual std::span<const Digest> claimed_digests() const noexcept { return {}; }
  /// What makes each parameter where it is needed, GPUs included: the same bytes as read() has. Empty unless these
  /// weights are made up.
  virtual std::span<const WordGenerator> generators() const noexcept { return {}; }
};

/// Fills `destination` with a rectangle of a parameter's matrix view, row by row.
void read_slice(const WeightSource& source, const Model& model, std::size_t parameter, const Slice& slice,
                std::span<std::byte> destination);

/// A checkpoint as the weights of a model: matched, and converted to the model's dtype where it has another one.
class CheckpointSource final : public WeightSource {
 public:
  /// Errors as match_checkpoint() has them; Error(bad_data) for an lm_head.weight that is an alias and differs from the
  /// embedding.
  CheckpointSource(const Model& model, Checkpoint checkpoint, std::span<const std::string> ignore = {});

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

/// Seeded weights: bits that depend on seed, parameter name and element index only, small finite bf16/fp16/fp32 values.
/// The same seed gives the same weights everywhere, whatever the shard. `changed_share`, 0 to 1: the version after it,
/// in which that share of the elements differ, at places that the seed draws, each in its lowest bit.
std::unique_ptr<WeightSource> make_synthetic_source(const Model& model, std::uint64_t seed, double changed_share = 0);

/// The seed of "synth" (which is 1) or "synth:SEED"; nothing for what else `spec` may be, a path. Error(usage).
std::optional<std::uint64_t> synthetic_seed(const std::string& spec);
/// The weights of `spec`: of `checkpoint`, which is what it names, or made up. `model` must be the model of that
/// checkpoint; `ignore`: see match_checkpoint().
std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec,
                                          std::optional<Checkpoint> checkpoint, std::span<const std::string> ignore);
/// Both in one.
std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec);

}  // namespace weightcast
