#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

/// `model.safetensors.index.json`: which file holds which tensor. The format: format.md.
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

}  // namespace weightcast
