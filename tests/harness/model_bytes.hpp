#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/digest.hpp"

/// Weights that are quickly made and the same everywhere, for tests that need a whole model.
namespace weightcast::harness {

inline std::vector<std::byte> random_bytes(std::uint64_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// Of each parameter its tensor's bytes: every word differs from every other of the model. The snapshot and its parts
/// never look inside.
inline std::vector<std::vector<std::byte>> model_bytes(const Model& model, std::uint64_t seed) {
  std::vector<std::vector<std::byte>> parameters;
  std::uint64_t state = seed;
  for (const ParameterRule& rule : model.parameters) {
    if (rule.row > 0) {
      parameters.push_back(parameters.back());
      continue;
    }
    auto& bytes = parameters.emplace_back(rule.info.size_bytes().value());
    for (std::byte& byte : bytes) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      byte = static_cast<std::byte>(state >> 56);
    }
  }
  return parameters;
}

/// What is the parameter's own of its tensor's bytes.
inline std::span<const std::byte> section_bytes(const ParameterRule& rule, const std::vector<std::byte>& tensor) {
  const auto row_bytes = matrix_of(rule.info).columns * element_bytes(rule.info.dtype);
  return std::span(tensor).subspan(rule.row * row_bytes, rule.rows * row_bytes);
}

/// Its digest, at its place in the tensor.
inline Digest section_digest(const ParameterRule& rule, const std::vector<std::byte>& tensor) {
  const auto own = section_bytes(rule, tensor);
  return digest_bytes(own, static_cast<std::uint64_t>(own.data() - tensor.data()));
}

/// Of parameters that are whole tensors.
inline std::vector<Digest> digests_of(const std::vector<std::vector<std::byte>>& parameters) {
  std::vector<Digest> digests;
  for (const auto& bytes : parameters) digests.push_back(digest_bytes(bytes, 0));
  return digests;
}

/// What the slot of tensor-parallel rank `rank` holds.
inline std::vector<std::byte> slot_of(const TransferPlan& plan, std::size_t rank,
                                      const std::vector<std::vector<std::byte>>& parameters) {
  std::vector<std::byte> slot(plan.slot_bytes);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Shard& shard = plan.ranks[rank].shards[i];
    const std::byte* source = parameters[i].data() + shard.parameter_offset;
    for (std::uint64_t row = 0; row < shard.rows; ++row) {
      std::memcpy(slot.data() + shard.destination_offset + row * shard.destination_pitch,
                  source + row * shard.parameter_pitch, shard.row_bytes);
    }
  }
  return slot;
}

}  // namespace weightcast::harness
