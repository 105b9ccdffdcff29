#pragma once

#include <rapidcheck/gtest.h>

#include <cstdint>
#include <vector>

#include "weightcast/model/parameter_rules.hpp"

/// Random models for properties of plans and digests.
namespace weightcast::harness {

/// Uniform in [from, to]: the first cases are as large as the last.
inline std::uint64_t number(std::uint64_t from, std::uint64_t to) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(from, to + 1));
}

/// The largest random model; `group` heads share a key/value head.
struct Largest {
  std::uint64_t layers, hidden, group, head_dim;
};

/// A small model that can be cut in several ways.
inline ModelConfig random_config(const Largest& largest) {
  ModelConfig c;
  c.family = families()[number(0, families().size() - 1)].family;
  c.layers = number(1, largest.layers);
  c.hidden = number(1, largest.hidden);
  c.kv_heads = number(1, 4);
  c.heads = c.kv_heads * number(1, largest.group);
  c.head_dim = number(1, largest.head_dim);
  c.intermediate = c.heads * number(1, 4);
  c.vocabulary = 64 * c.heads - number(0, 63);
  const auto& bias = spec_of(c.family).attention_bias;
  c.attention_bias = bias.key.empty() && bias.otherwise;
  const auto& query_norms = spec_of(c.family).has_query_norms;
  c.query_norms = query_norms.key.empty() ? query_norms.otherwise : number(0, 1) == 1;
  c.dtype = *rc::gen::element(DType::BF16, DType::F32);
  const auto& spec = spec_of(c.family);
  if (spec.latent_attention) {
    c.latent = {number(0, 4), number(1, 4), number(1, 4), number(1, 4), number(1, 4)};
    c.head_dim = c.latent.nope_dim + c.latent.rope_dim;
  }
  if (spec.experts.form == ExpertForm::none) return c;
  c.experts = {.count = number(1, 4), .intermediate = c.heads * number(1, 3)};
  c.wide_routers = c.dtype != DType::F32 && number(0, 2) == 0;
  if (spec.experts.size_key == "intermediate_size") c.experts.intermediate = c.intermediate;
  if (!spec.experts.shared_size_key.empty()) c.experts.shared = c.heads * number(1, 2);
  if (!spec.experts.shared_count_key.empty()) c.experts.shared = c.experts.intermediate * number(0, 2);
  const bool may_be_dense = !spec.experts.shared_size_key.empty() || !spec.experts.shared_count_key.empty();
  for (std::uint64_t i = 0; may_be_dense && i < c.layers; ++i) {
    if (number(0, 3) == 0) c.experts.dense_layers.push_back(i);
  }
  return c;
}

/// Experts owned whole by one group of ranks or by several, as far as the heads can be cut over them.
inline EngineFormat random_format(const ModelConfig& config) {
  std::vector<std::uint64_t> groups{1};
  const bool has_experts = config.experts.dense_layers.size() < config.layers;
  for (std::uint64_t ep = 2; has_experts && ep <= config.experts.count; ++ep) {
    if (config.experts.count % ep == 0 && !possible_tp(build_model(config, {.ep = ep})).empty()) groups.push_back(ep);
  }
  return {.ep = groups[number(0, groups.size() - 1)]};
}

inline Model random_model(const Largest& largest) {
  const auto config = random_config(largest);
  return build_model(config, random_format(config));
}

}  // namespace weightcast::harness
