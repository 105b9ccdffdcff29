// The input is an index. It is refused as bad data, or every file stays in the folder and the index can be written and
// read back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "weightcast/checkpoint/checkpoint_files.hpp"
#include "weightcast/core/error.hpp"

using namespace weightcast;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  WeightMap weight_map;
  try {
    weight_map = parse_sharded_index({reinterpret_cast<const char*>(data), size}, "index").weight_map;
  } catch (const Error& error) {
    if (error.code() != ExitCode::bad_data) std::abort();
    return 0;
  }
  for (const auto& [name, file] : weight_map) {
    const auto path = std::filesystem::path("/folder") / file;
    if (path != path.lexically_normal() || !path.string().starts_with("/folder/") || !path.has_filename()) std::abort();
  }
  if (parse_sharded_index(make_sharded_index(weight_map, size), "again").weight_map != weight_map) std::abort();
  return 0;
}
