// The input is a config.json. It is refused as bad data or as unsupported, or what was read can be written and read
// back, and, when it is small enough to try, has a plan whose coverage is proven.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "weightcast/core/error.hpp"
#include "weightcast/plan/transfer_plan.hpp"

using namespace weightcast;

namespace {

bool expected(const Error& error) {
  return error.code() == ExitCode::bad_data || error.code() == ExitCode::config;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ModelConfig config;
  try {
    config = parse_model_config(std::string_view(reinterpret_cast<const char*>(data), size), "config.json");
  } catch (const Error& error) {
    if (!expected(error)) std::abort();
    return 0;
  }
  config.inside = false;  // it is written as a model of its own
  if (parse_model_config(to_config_json(config), "config.json") != config) std::abort();
  if (config.layers > 8 || config.experts.count > 32) return 0;
  for (const std::uint64_t ep : {1u, 2u, 3u}) {
    try {
      const Model model = build_model(config, {.ep = ep});
      for (const std::uint64_t tp : {1u, 2u, 3u, 8u}) {
        try {
          if (!prove_coverage(make_plan(model, tp, 1)).empty()) std::abort();
        } catch (const Error& error) {
          if (error.code() != ExitCode::config) std::abort();
        }
      }
    } catch (const Error& error) {
      if (!expected(error)) std::abort();
    }
  }
  return 0;
}
