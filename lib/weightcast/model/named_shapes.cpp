#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <filesystem>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/download.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/foreign.hpp"
#include "weightcast/core/near_miss.hpp"
#include "weightcast/core/wrong_path.hpp"
#include "weightcast/model/model_config.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t config_limit_bytes = 1 << 20;

// `tiny` (224 128 bytes) is for tests and demonstrations, and small on purpose in every way that can go wrong: cut for
// tp 1, 2, 4 and 8 it shares key/value heads (tp 4 and 8), pads the vocabulary (200 rows to 256, so that the last of 8
// ranks holds padding only), has a head of its own, and tensors that do not fill their 256-byte alignment. `moe-20k`
// (1.33 GB) is what a large mixture of experts is to a plan: 20 000 parameters, of 64 KiB each, for a machine of any
// size.
const std::array<std::pair<std::string, ModelConfig>, 5>& shapes() {
  static const std::array<std::pair<std::string, ModelConfig>, 5> table{{
      {"llama-3.2-1b",
       {.layers = 16,
        .hidden = 2048,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 64,
        .intermediate = 8192,
        .vocabulary = 128256,
        .tied_embeddings = true}},
      {"llama-3.1-8b",
       {.layers = 32,
        .hidden = 4096,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 128,
        .intermediate = 14336,
        .vocabulary = 128256}},
      {"smollm2-135m",
       {.layers = 30,
        .hidden = 576,
        .heads = 9,
        .kv_heads = 3,
        .head_dim = 64,
        .intermediate = 1536,
        .vocabulary = 49152,
        .tied_embeddings = true}},
      {"tiny",
       {.layers = 3, .hidden = 64, .heads = 8, .kv_heads = 2, .head_dim = 8, .intermediate = 96, .vocabulary = 200}},
      {"moe-20k",
       {.family = Family::qwen3_moe,
        .layers = 52,
        .hidden = 256,
        .heads = 8,
        .kv_heads = 4,
        .head_dim = 32,
        .intermediate = 128,
        .vocabulary = 4096,
        .tied_embeddings = true,
        .experts = {.count = 128, .intermediate = 128}}},
  }};
  return table;
}

}  // namespace

const std::vector<std::string>& named_shapes() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const auto& [name, config] : shapes()) result.push_back(name);
    return result;
  }();
  return names;
}

ModelConfig load_model_config(const std::string& name_or_path, const ConfigContext& context) {
  for (const auto& [name, config] : shapes()) {
    if (name == name_or_path) return config;
  }
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path path = name_or_path;
  if (fs::is_directory(path, ignored)) {
    path = hub_snapshot(name_or_path).value_or(name_or_path);
    path /= "config.json";
  } else if (fs::exists(path, ignored) &&
             (name_or_path.ends_with(".safetensors") || name_or_path.ends_with(".safetensors.index.json"))) {
    path.replace_filename("config.json");
  }
  if (!fs::exists(path, ignored)) {
    const bool folder = path != fs::path(name_or_path);
    if (folder) {
      throw Error(ExitCode::no_input, fmt::format("{} has no config.json", path.parent_path().string()),
                  "put the config.json of its model there, or name one");
    }
    if (name_or_path.find('/') != name_or_path.npos) expect_there(name_or_path);
    throw Error(ExitCode::usage,
                fmt::format("\"{}\" is neither a known model shape nor a config.json", printable(name_or_path)),
                did_you_mean(name_or_path, {named_shapes().begin(), named_shapes().end()}, "",
                             fmt::format("name one of {}, a config.json, or a folder that holds one",
                                         fmt::join(named_shapes(), ", "))));
  }
  const auto text = read_text_file(path, config_limit_bytes);
  refuse_foreign_content(path, text);
  return parse_model_config(text, path, context);
}

}  // namespace weightcast
