// The input is a safetensors file. It is refused as bad data, or what was read can be written and read back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "weightcast/checkpoint/safetensors_header.hpp"
#include "weightcast/core/error.hpp"

using namespace weightcast;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  SafetensorsHeader header;
  try {
    header = parse_safetensors_header(std::as_bytes(std::span(data, size)), size);
  } catch (const Error& error) {
    if (error.code() != ExitCode::bad_data) std::abort();
    return 0;
  }
  std::vector<TensorInfo> tensors;
  for (const auto& entry : header.entries) tensors.push_back(entry.info);
  const auto text = make_safetensors_header(tensors, header.metadata);
  const auto data_bytes = size - header.data_offset;
  const auto again = parse_safetensors_header(std::as_bytes(std::span(text)), text.size() + data_bytes);
  if (again.entries.size() != header.entries.size() || again.metadata != header.metadata) std::abort();
  std::uint64_t covered = 0;
  for (const auto& entry : header.entries) covered += entry.end - entry.begin;
  if (covered != data_bytes) std::abort();
  return 0;
}
