#pragma once

#include <rapidcheck/gtest.h>

#include <cstdint>

#include "weightcast/model/model_config.hpp"

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
  c.attention_bias = spec_of(c.family).attention_bias == Bias::always;
  c.dtype = *rc::gen::element(DType::BF16, DType::F32);
  return c;
}

}  // namespace weightcast::harness
