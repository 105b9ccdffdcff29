#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "weightcast/tensor/tensor_info.hpp"

/// The header of a safetensors file: a total parser and a writer. The format and every rule checked: format.md.
namespace weightcast {

/// A tensor of a safetensors file and where its bytes are.
struct SafetensorsEntry {
  TensorInfo info;
  std::uint64_t begin = 0, end = 0;  ///< byte range relative to the start of the data section
  bool operator==(const SafetensorsEntry&) const = default;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;        ///< in the order of their bytes
  std::map<std::string, std::string> metadata;  ///< "__metadata__"
  std::uint64_t data_offset = 0;                ///< first byte of the data section in the file
};

/// Largest JSON header that the format allows, in bytes.
inline constexpr std::uint64_t safetensors_header_limit = 100'000'000;

/// Parses the start of a file of `file_bytes` bytes. `start` holds the 8 length bytes and the JSON they announce (more
/// is ignored). Never crashes, whatever the bytes are; Error(bad_data) names the rule and the byte offset in the file.
/// Duplicates, unknown fields, holes, overlaps, trailing bytes and overflow are errors.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, std::uint64_t file_bytes);

/// The bytes that precede the data section of a file holding `tensors` back to back in this order; padded with spaces
/// to a multiple of 8 bytes.
std::string make_safetensors_header(std::span<const TensorInfo> tensors,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace weightcast
