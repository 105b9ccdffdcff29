#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "weightcast/device/delta_run.hpp"
#include "weightcast/plan/transfer_plan.hpp"

/// What of a plan can travel as deltas, and how: its streams (delta.md), where they lie at both ends, and the plan by
/// which transports move them. Pure: no MPI, GPU or files.
namespace weightcast {

/// What one trainer rank sends to one tp rank, and the memory for it.
struct DeltaStream {
  std::size_t from = 0, tp_rank = 0;
  std::vector<DeltaRun> runs;  ///< of its segments, in the order of the schedule
  std::uint64_t block_count = 0;
  std::uint64_t capacity = 0;                         ///< entries that there is room for
  std::uint64_t outbox_offset = 0, inbox_offset = 0;  ///< at the trainer rank, at the engine rank
  std::vector<std::uint64_t> part_ends;               ///< by part, in the bytes of the stream: ascending

  std::uint64_t starts_bytes() const noexcept { return (block_count + 1) * sizeof(std::uint64_t); }
  /// Of it with so many entries.
  std::uint64_t size_bytes(std::uint64_t entries) const noexcept {
    return starts_bytes() + entries * sizeof(DeltaEntry);
  }
  /// How many parts have them. `entries` is at most `capacity`.
  std::size_t parts(std::uint64_t entries) const noexcept;
};

struct DeltaPlan {
  std::vector<DeltaStream> streams;  ///< by tp rank, then in the order of its schedule's supplies
  /// How streams move: a plan of its own, of which outboxes are the source regions, inboxes the slots, and parameter i
  /// is part i of every stream.
  TransferPlan movement;

  /// Whether there can be deltas at all: not of shards with odd sizes or places.
  bool possible() const noexcept { return !streams.empty(); }
  /// Those that a tp rank receives.
  std::span<const DeltaStream> streams_to(std::size_t tp_rank) const noexcept;
  std::uint64_t outbox_bytes(std::size_t trainer_rank) const { return movement.source_bytes(trainer_rank); }
  /// Of each tp rank.
  std::uint64_t inbox_bytes() const noexcept { return movement.slot_bytes; }
};

/// With room for `limit` of the bytes of each stream, 0 to 1. The same on every rank.
DeltaPlan make_delta_plan(const TransferPlan& plan, double limit);

}  // namespace weightcast
