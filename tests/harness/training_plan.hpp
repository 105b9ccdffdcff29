#pragma once

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast::harness {

/// For one engine rank: a model whose embedding is filled in several steps, with a tail.
inline TransferPlan training_plan(DType dtype, bool tied = false, std::uint64_t layers = 2) {
  ModelConfig config;
  config.layers = layers;
  config.hidden = 72;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 18;
  config.intermediate = 40;
  config.vocabulary = 8011;
  config.tied_embeddings = tied;
  config.dtype = dtype;
  return make_plan(build_model(config), 1, 1);
}

}  // namespace weightcast::harness
