#pragma once

#include <optional>
#include <string>
#include <vector>

#include "weightcast/checkpoint/sharded_index.hpp"

/// Which files of a folder are a checkpoint. The rules: format.md.
namespace weightcast {

/// The files of one checkpoint. Only names have been looked at, and the index.
struct CheckpointFiles {
  std::string name;                ///< "model.safetensors", "model.safetensors.index.json", "model-*-of-00003..."
  std::string folder;              ///< with what follows the names
  std::vector<std::string> files;  ///< in that folder, sorted
  std::optional<ShardedIndex> index = {};
};

/// What a path stands for.
struct CheckpointSearch {
  std::string folder;                       ///< of the files: of a Hub cache, that of the snapshot
  std::vector<CheckpointFiles> candidates;  ///< never empty; the first is the one that is read
  std::vector<std::string> notes;           ///< see Checkpoint::notes()
};

/// Looks for the checkpoints at `path` (see Checkpoint::open()). Error(no_input) when there is none or a shard of the
/// only one is missing, saying what is there instead; Error(bad_data) for an index that breaks a rule, and for a folder
/// that holds a whole checkpoint and another that lacks files.
CheckpointSearch find_checkpoint(const std::string& path);

/// The error of a folder that holds two checkpoints, of which only one can be meant.
[[noreturn]] void refuse_two_checkpoints(const CheckpointFiles& a, const CheckpointFiles& b, const std::string& why);

}  // namespace weightcast
