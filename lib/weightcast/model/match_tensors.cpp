#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {
namespace {

constexpr std::string_view head_name = "lm_head.weight", embedding_name = "model.embed_tokens.weight";

/// Buffers of old checkpoints that the engine computes for itself.
bool is_rotary_buffer(std::string_view name) noexcept {
  constexpr std::array<std::string_view, 3> buffers{"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                                    "rotary_emb.sin_cached"};
  return std::any_of(buffers.begin(), buffers.end(), [&](auto buffer) { return name.ends_with(buffer); });
}

}  // namespace

TensorMatch match_tensors(const Model& model, std::span<const TensorInfo> tensors, const std::string& what) {
  TensorMatch match;
  std::vector<std::string> problems;
  const auto compare = [&](const TensorInfo& found, const TensorInfo& expected) {
    if (found.dtype == expected.dtype && found.shape == expected.shape) return;
    problems.push_back(
        fmt::format("{} is {}, expected {}", printable(found.name), found.describe(), expected.describe()));
  };

  std::map<std::string_view, std::ptrdiff_t> by_name;
  for (const auto& tensor : tensors) {
    if (is_rotary_buffer(tensor.name)) {
      match.skipped.push_back(tensor.name);
    } else if (!by_name.emplace(tensor.name, &tensor - tensors.data()).second) {
      problems.push_back(fmt::format("{} appears twice", printable(tensor.name)));
    }
  }
  for (const auto& rule : model.parameters) {
    auto found = by_name.find(rule.info.name);
    if (found == by_name.end() && model.config.tied_embeddings && rule.info.name == embedding_name) {
      found = by_name.find(head_name);
    }
    if (found == by_name.end()) {
      match.source.push_back(-1);
      problems.push_back(fmt::format("{} is missing", rule.info.name));
      continue;
    }
    compare(tensors[static_cast<std::size_t>(found->second)], rule.info);
    match.source.push_back(found->second);
    by_name.erase(found);
  }
  for (const auto& [name, index] : by_name) {
    if (model.config.tied_embeddings && name == head_name) {
      compare(tensors[static_cast<std::size_t>(index)], model.parameters.front().info);
      match.alias = index;
      match.skipped.emplace_back(name);
    } else {
      problems.push_back(
          fmt::format("{} is unknown to {} models", printable(name), weightcast::name(model.config.family)));
    }
  }
  if (problems.empty()) return match;

  const std::size_t count = problems.size();
  throw Error(ExitCode::bad_data,
              fmt::format("{} does not fit the model: {} difference{}\n  {}", what, count, count == 1 ? "" : "s",
                          list_lines(problems)),
              "check that the checkpoint belongs to this config.json");
}

}  // namespace weightcast
