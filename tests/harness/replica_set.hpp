#pragma once

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "weightcast/model/model_config.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/store/parameter_store.hpp"
#include "weightcast/trainer/trainer.hpp"
#include "weightcast/transport/transport.hpp"
#include "weightcast/verify/digest.hpp"

/// Small update groups for the tests under mpiexec: a trainer with random weights and engine ranks that know them too.
namespace weightcast::testing_harness {

/// Why weights in such memory cannot be moved so on this machine, or nothing.
inline std::string why_not(MemoryKind memory, std::string_view transport) {
  if (memory == MemoryKind::cuda && gpu::count() == 0) return gpu::why_none();
  return transport == "nccl" && gpu::nccl_version() == "not built in" ? "this build has no NCCL" : "";
}

/// Whether each rank tells NCCL that it is on a host of its own: then they may share a GPU (for the function, never for
/// timing).
inline void stand_apart(bool apart) {
  ::unsetenv("NCCL_HOSTID");
  if (!apart) return;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  ::setenv("NCCL_HOSTID", std::to_string(rank).c_str(), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}

/// Weights from a seeded generator, different in every byte position from seed to seed, and the same on all ranks.
class RandomWeights final : public WeightSource {
 public:
  RandomWeights(const Model& model, std::uint64_t seed) {
    for (std::size_t p = 0; p < model.parameters.size(); ++p) {
      std::mt19937_64 random(seed * 1'000'003 + p);
      auto& bytes = parameters_.emplace_back(*model.parameters[p].info.size_bytes());
      for (auto& byte : bytes) byte = static_cast<std::byte>(random());
    }
  }
  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override {
    std::memcpy(destination.data(), parameters_.at(parameter).data() + offset, destination.size());
  }
  std::string describe() const override { return "random weights"; }
  const std::vector<std::byte>& bytes(std::size_t parameter) const { return parameters_.at(parameter); }

 private:
  std::vector<std::vector<std::byte>> parameters_;
};

/// A model that is cut evenly by 1, 2, 4 and 8, with column shards, shared key/value heads and a padded vocabulary.
inline Model small_model(Family family = Family::llama) {
  auto config = load_model_config("tiny");
  config.family = family;
  config.layers = 2;
  config.head_dim = 16;
  config.attention_bias = family == Family::qwen2;
  return build_model(config);
}

/// A layer of experts that are cut into more than a thousand pieces of 1 KiB and less by tp 2, 4 and 8.
inline Model many_pieces_model() {
  auto config = load_model_config("tiny");
  config.family = Family::mixtral;
  config.layers = 1;
  config.head_dim = 16;
  config.intermediate = 16;
  config.experts = {.count = 400, .intermediate = 16};
  return build_model(config);
}

/// Holds a slot's bytes against the source by the sharding rule itself, element by element: shares no code with
/// transports.
inline testing::AssertionResult slot_equals(const TransferPlan& plan, std::size_t tp_rank,
                                            std::span<const std::byte> slot, const RandomWeights& weights,
                                            std::size_t first = 0, std::size_t count = SIZE_MAX) {
  for (const auto& tensor : plan.engine_tensors) {
    std::uint64_t base = tensor.offset;
    for (const auto p : tensor.parameters) {
      const auto& rule = plan.model.parameters[p];
      const auto part = shard_of(rule, plan.tp, tp_rank);
      const auto width = static_cast<std::uint64_t>(bits(rule.info.dtype)) / 8;
      const auto columns = *rule.info.elements() / rule.info.shape[0];
      for (std::uint64_t row = 0; row < part.rows && p >= first && p - first < count; ++row) {
        const auto* expected = weights.bytes(p).data() + ((part.row + row) * columns + part.column) * width;
        const auto* held = slot.data() + base + row * part.columns * width;
        if (std::memcmp(held, expected, part.columns * width) != 0) {
          return testing::AssertionFailure()
                 << rule.info.name << " row " << row << " of tp rank " << tp_rank << " differs";
        }
      }
      const auto extent = shard_extent(rule, plan.tp, tp_rank);
      base += extent.rows * extent.columns * width;
    }
  }
  return testing::AssertionSuccess();
}

inline int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

inline int world_size() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

/// One that is none of the others: rows in uneven shares, one of them cut in columns, too, and held by two ranks.
inline SourceLayout jagged_layout(const Model& model, std::uint64_t trainers) {
  std::vector<HeldRectangle> rectangles;
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto shape = matrix_of(model.parameters[p].info);
    const std::uint64_t top = shape.rows / 3, left = shape.columns / 4;
    rectangles.push_back({p % trainers, p, {0, 0, top, shape.columns}});
    rectangles.push_back({(p + 1) % trainers, p, {top, 0, shape.rows - top, left}});
    const Slice rest{top, left, shape.rows - top, shape.columns - left};
    rectangles.push_back({p % trainers, p, rest});
    if (trainers > 1) rectangles.push_back({(p + 1) % trainers, p, rest});
  }
  return custom_layout(model, trainers, rectangles);
}
inline SourceLayout layout_of(const Model& model, LayoutKind kind, std::uint64_t trainers) {
  return kind == LayoutKind::custom ? jagged_layout(model, trainers) : make_layout(kind, model, trainers);
}

/// Puts a trainer rank's piece where it lies in its source region.
inline void write_piece(const Region& region, const Model& model, const Piece& piece, const RandomWeights& weights) {
  const auto& info = model.parameters[piece.parameter_index].info;
  const auto element = element_bytes(info.dtype), pitch = matrix_of(info).columns * element;
  const std::span bytes(weights.bytes(piece.parameter_index));
  for (std::uint64_t row = 0; row < piece.slice.rows; ++row) {
    write_region(
        region, piece.offset + row * piece.pitch,
        bytes.subspan((piece.slice.row + row) * pitch + piece.slice.column * element, piece.slice.columns * element));
  }
}

}  // namespace weightcast::testing_harness
