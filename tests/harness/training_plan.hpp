#pragma once

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast::harness {

/// Of a BF16 model with two query heads for each of two key/value heads.
inline ModelConfig training_config(std::uint64_t layers, std::uint64_t hidden, std::uint64_t head_dim,
                                   std::uint64_t intermediate, std::uint64_t vocabulary) {
  ModelConfig config;
  config.layers = layers;
  config.hidden = hidden;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = head_dim;
  config.intermediate = intermediate;
  config.vocabulary = vocabulary;
  return config;
}

/// For one engine rank: a model whose embedding is filled in several steps, with a tail.
inline TransferPlan training_plan(DType dtype, bool tied = false, std::uint64_t layers = 2) {
  auto config = training_config(layers, 72, 18, 40, 8011);
  config.tied_embeddings = tied;
  config.dtype = dtype;
  return make_plan(build_model(config), 1, 1);
}

}  // namespace weightcast::harness
