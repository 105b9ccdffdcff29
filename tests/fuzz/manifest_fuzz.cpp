// The input is a manifest as it arrives from another rank. It is refused as bad data, or what was read can be written
// and read back, and equals itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "weightcast/core/error.hpp"
#include "weightcast/update/manifest.hpp"

using namespace weightcast;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Manifest manifest;
  try {
    manifest = parse_manifest({reinterpret_cast<const char*>(data), size});
  } catch (const Error& error) {
    if (error.code() != ExitCode::bad_data) std::abort();
    return 0;
  }
  const auto again = parse_manifest(to_json(manifest));
  if (again != manifest || !first_difference(manifest, again).empty()) std::abort();
  if (first_difference(Manifest{}, manifest).empty() && manifest != Manifest{}) std::abort();
  return 0;
}
