#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Which files of a folder are a checkpoint, and what its index (`model.safetensors.index.json`) says is in which. The
/// rules: format.md.
namespace weightcast {

/// Tensor name -> file: a path in the folder of the index, without `.`, `..` and empty parts.
using WeightMap = std::map<std::string, std::string>;

struct ShardedIndex {
  WeightMap weight_map;
  std::optional<std::uint64_t> total_bytes;  ///< metadata.total_size, where that is a whole number: a claim, no more
};

/// Parses an index. Never crashes, whatever the bytes are; Error(bad_data), naming `what` and the byte offset, on bad
/// JSON, a missing weight_map, and a path that would leave the folder. Whether the files exist, and where links lead,
/// is not its business.
ShardedIndex parse_sharded_index(std::string_view json, const std::string& what);

/// The text of an index; `total_bytes` is the size of all tensors.
std::string make_sharded_index(const WeightMap& weight_map, std::uint64_t total_bytes);

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
