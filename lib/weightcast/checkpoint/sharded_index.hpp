#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

/// `model.safetensors.index.json`: which file of a folder holds which tensor. The format: format.md.
namespace weightcast {

/// Tensor name -> file name in the same folder.
using WeightMap = std::map<std::string, std::string>;

/// Parses an index. Never crashes, whatever the bytes are; Error(bad_data), naming `what` and the byte offset, on bad
/// JSON, a missing weight_map, and a file name that would leave the folder. Whether the files exist is not its
/// business.
WeightMap parse_sharded_index(std::string_view json, const std::string& what);

/// The text of an index; `total_bytes` is the size of all tensors.
std::string make_sharded_index(const WeightMap& weight_map, std::uint64_t total_bytes);

}  // namespace weightcast
