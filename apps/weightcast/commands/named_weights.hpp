#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/job/job.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

/// The weights that --initial or --target names, opened: a checkpoint, an HDF5 snapshot (whole, or the last delta of a
/// chain), or made up.
class NamedWeights {
 public:
  /// `spec`: a path, "synth" or "synth:SEED". Errors of Checkpoint::open() and Snapshot::open().
  explicit NamedWeights(std::string spec);

  bool made_up() const noexcept { return !checkpoint_ && !snapshot_; }
  /// What a config.json of theirs is read with: nothing of what is made up.
  ConfigContext context(std::vector<std::string>& notes) const;
  /// The model of a file: of a checkpoint by config_of(), of a snapshot what stands in it.
  ModelConfig config(std::vector<std::string>& notes) const;
  /// The weights as those of `model`; this is empty then. A snapshot must have its names, shapes and types:
  /// Error(bad_data). Otherwise errors as make_source() has them.
  std::unique_ptr<WeightSource> source(const Model& model, std::span<const std::string> ignore) &&;

 private:
  std::string spec_;
  std::optional<Checkpoint> checkpoint_;
  std::optional<Snapshot> snapshot_;
};

/// Checkpoint::open(). The error for what is no path, but a shape or made-up weights, says where those go.
Checkpoint open_checkpoint(const std::string& path);

/// The model of a job: `shape` where it is given, otherwise that of the target, or, when that is made up, of the
/// initial weights. `notes` gets what should be known.
ModelConfig config_of(const NamedWeights& initial, const NamedWeights& target, const std::optional<std::string>& shape,
                      std::vector<std::string>& notes);

/// Holds those weights that say which digests they have (snapshots) against that, before anybody is given any of them:
/// all ranks together read them once. Collective over the job. Error(mismatch) naming a parameter.
void check_claims(const Job& job, const Model& model, std::initializer_list<const WeightSource*> sources);

/// What people should know of a snapshot: what a delta builds on.
std::vector<std::string> notes_of(const Snapshot& snapshot);

}  // namespace weightcast
