#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weightcast/model/parameter_rules.hpp"

/// Which bytes go where: a value, made once, the same on every rank. Pure: no MPI, GPU or files.
namespace weightcast {

/// One strided copy, in bytes: `rows` runs of `row_bytes`, `source_pitch` and `destination_pitch` apart.
/// Contiguous on a side when its pitch equals row_bytes (one row: both pitches are row_bytes).
struct Segment {
  std::uint64_t source = 0;       ///< offset in the trainer's source region
  std::uint64_t destination = 0;  ///< offset in the engine's slot
  std::uint64_t row_bytes = 0, rows = 0;
  std::uint64_t source_pitch = 0, destination_pitch = 0;
  bool operator==(const Segment&) const = default;

  std::uint64_t size_bytes() const noexcept { return row_bytes * rows; }
  bool contiguous_source() const noexcept { return source_pitch == row_bytes || rows <= 1; }
  bool contiguous_destination() const noexcept { return destination_pitch == row_bytes || rows <= 1; }
};

struct ByteRange {
  std::uint64_t offset = 0, size_bytes = 0;
  bool operator==(const ByteRange&) const = default;
};

/// An engine tensor of one tensor-parallel rank: the same shape on every rank.
struct EngineTensor {
  std::string name;
  DType dtype = DType::BF16;
  MatrixShape shape;         ///< rows x columns in elements, padding included
  std::uint64_t offset = 0;  ///< in the slot, a multiple of `alignment_bytes`
  std::uint64_t size_bytes = 0;
  std::vector<std::size_t> parameters;  ///< indices of the parameters fused into it, by part
};

/// What one tensor-parallel rank receives.
struct RankPlan {
  /// The shard of each parameter, indexed like Model::parameters, in rows of its matrix view (a norm of n elements is n
  /// rows of one element); rows = 0 and all else 0 where the rank holds nothing of it.
  std::vector<Segment> shards;
  /// The same bytes with neighbours merged: what a copy engine is given. Sorted by destination.
  std::vector<Segment> moves;
  /// Bytes of the slot that belong to a tensor but to no parameter (vocabulary padding): zero, set once per slot.
  std::vector<ByteRange> padding;
  std::uint64_t received_bytes = 0;
};

/// All segments of all ranks. Replicas have equal plans, so ranks are indexed by tp rank only.
struct TransferPlan {
  static constexpr std::uint64_t alignment_bytes = 256;

  std::uint64_t tp = 1, dp = 1;
  Model model;
  std::vector<std::uint64_t> source_offsets;  ///< of each parameter in the source region, aligned
  std::uint64_t source_bytes = 0;             ///< size of the source region
  std::vector<EngineTensor> engine_tensors;
  std::uint64_t slot_bytes = 0;  ///< size of an engine slot
  std::vector<RankPlan> ranks;   ///< by tp rank
  std::string digest;            ///< 32 hexadecimal digits over everything above; equal plans have equal digests

  /// Bytes that leave the trainer when every shard is sent once per tp rank (replicas pass them on).
  std::uint64_t egress_bytes() const noexcept { return egress_bytes(0, model.parameters.size()); }
  /// The same for parameters [first, first + count).
  std::uint64_t egress_bytes(std::size_t first, std::size_t count) const noexcept;
  /// The part of egress_bytes() above the model's size: replicated parameters and shared key/value heads.
  std::uint64_t replication_bytes() const noexcept;
  /// Byte offset of shard `parameter` of rank `tp_rank` within the parameter itself.
  std::uint64_t offset_in_parameter(std::size_t tp_rank, std::size_t parameter) const noexcept;
  /// True when this rank's shard of `parameter` is the copy of a lower rank's (see is_copy()).
  bool copy(std::size_t tp_rank, std::size_t parameter) const noexcept;
};

/// Makes the plan. Error(config) when a size does not divide (SmolLM2 with tp 2), naming parameter, size and tp.
TransferPlan make_plan(const Model& model, std::uint64_t tp, std::uint64_t dp);

/// Merges segments that continue each other on both sides; input in any order, output sorted by destination.
std::vector<Segment> coalesce(std::vector<Segment> segments);

/// Proves a plan: every byte of every slot is written by exactly one segment or is padding; every byte of every
/// parameter is read by at least one rank, and by more than one only where its rule replicates; `moves` carry the same
/// bytes as `shards`; nothing leaves its region. Returns the first violation in words, or an empty string.
std::string prove_coverage(const TransferPlan& plan);

/// The table of `weightcast plan`: a row per engine tensor, then bytes per rank, trainer egress, what replication adds
/// (itemised), and the verdict of prove_coverage().
std::string describe(const TransferPlan& plan);

}  // namespace weightcast
