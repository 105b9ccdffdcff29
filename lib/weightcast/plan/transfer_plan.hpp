#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "weightcast/model/parameter_rules.hpp"
#include "weightcast/plan/roster.hpp"
#include "weightcast/plan/schedule.hpp"
#include "weightcast/plan/source_layout.hpp"

/// Which bytes go where: a value, made once, the same on every rank. Pure: no MPI, GPU or files.
namespace weightcast {

struct ByteRange {
  std::uint64_t offset = 0, size_bytes = 0;
  bool operator==(const ByteRange&) const = default;
};

/// An engine tensor of one tensor-parallel rank: the same shape on every rank.
struct EngineTensor {
  std::string name;
  DType dtype = DType::BF16;
  MatrixShape shape;          ///< rows x columns in elements, padding included
  std::uint64_t experts = 0;  ///< that it is stacked of: [experts, rows / experts, columns]; 0: a matrix or a vector
  std::uint64_t offset = 0;   ///< in the slot, a multiple of `alignment_bytes`
  std::uint64_t size_bytes = 0;
  std::vector<std::size_t> parameters;  ///< indices of the parameters fused into it, by part
};

/// What one tensor-parallel rank holds, and how it gets there.
struct RankPlan {
  /// What it holds of each parameter, indexed like Model::parameters, in rows of its tensor's matrix view (a norm of n
  /// elements is n rows of one element); rows = 0 where the rank holds nothing of it.
  std::vector<Shard> shards;
  std::vector<bool> copies;  ///< by parameter: TransferPlan::copy()
  /// From the trainer: where pieces and shards meet.
  Schedule schedule;
  /// From the same tp rank of the replica before, whose slot is laid out alike: the same segments in the same parts,
  /// their sources in that slot (`from` stays where they came from). Only with dp > 1.
  Schedule relay;
  /// Bytes of the slot that belong to a tensor but to no parameter (vocabulary padding): zero, set once per slot.
  std::vector<ByteRange> padding;
  std::uint64_t received_bytes = 0;
};

/// All that all ranks do. Replicas have equal plans, so ranks are indexed by tp rank only.
struct TransferPlan {
  static constexpr std::uint64_t alignment_bytes = SourceLayout::alignment_bytes;

  std::uint64_t tp = 1, dp = 1;
  Model model;
  SourceLayout sources;  ///< by trainer rank
  std::vector<EngineTensor> engine_tensors;
  std::uint64_t slot_bytes = 0;     ///< size of an engine slot
  std::uint64_t message_bytes = 0;  ///< of about, of transports that send messages
  std::uint64_t pack_bytes = 0;     ///< of a pack step at most
  std::vector<RankPlan> ranks;      ///< by tp rank
  std::string digest;               ///< 32 hexadecimal digits over everything above; equal plans have equal digests

  Roster roster() const noexcept { return {sources.ranks.size(), tp, dp}; }
  /// Size of a trainer rank's source region.
  std::uint64_t source_bytes(std::size_t trainer_rank = 0) const { return sources.ranks.at(trainer_rank).size_bytes; }
  /// Bytes of the model that a trainer rank has, be it that others have them, too.
  std::uint64_t held_bytes(std::size_t trainer_rank) const;
  /// Of a trainer rank that has all parameters whole.
  std::uint64_t source_offset(std::size_t parameter) const { return sources.ranks.at(0).pieces.at(parameter).offset; }
  /// Bytes that leave the trainer when every shard is sent once per tp rank (replicas pass them on).
  std::uint64_t egress_bytes() const noexcept { return egress_bytes(0, model.parameters.size()); }
  /// The same for parameters [first, first + count).
  std::uint64_t egress_bytes(std::size_t first, std::size_t count) const noexcept;
  /// What leaves one trainer rank of that.
  std::uint64_t egress_bytes_of(std::size_t trainer_rank, const Range& parameters) const noexcept;
  std::uint64_t egress_bytes_of(std::size_t trainer_rank) const noexcept {
    return egress_bytes_of(trainer_rank, {0, model.parameters.size()});
  }
  /// The tp ranks that a trainer rank sends to, in the order in which their walks come to it: so it meets each when
  /// that one turns to it, and no two trainer ranks begin with the same as long as there are others.
  std::vector<std::size_t> sinks(std::size_t trainer_rank) const;
  /// The part of egress_bytes() above the model's size: replicated parameters and shared key/value heads.
  std::uint64_t replication_bytes() const noexcept;
  /// True when this rank's shard of `parameter` is the copy of a lower rank's (see is_copy()).
  bool copy(std::size_t tp_rank, std::size_t parameter) const noexcept;
};

/// Makes the plan of a trainer that has this layout, which prove_layout() accepts, or everything on one rank. What
/// several trainer ranks have is sent by each of them to its share of the tp ranks (Holding::sender()). Of R trainer
/// ranks tp rank t of T begins with t * R / T and goes round: with R = T the one that has what it has under `tp`.
/// Error(config) when a size does not divide (SmolLM2 with tp 2), naming parameter, size and tp.
TransferPlan make_plan(const Model& model, std::uint64_t tp, std::uint64_t dp, SourceLayout sources);
TransferPlan make_plan(const Model& model, std::uint64_t tp, std::uint64_t dp);

/// The shape of an engine tensor on each rank, as engines have it: [rows], [rows, columns], or of experts
/// [experts, rows, columns].
std::vector<std::uint64_t> shape_of(const TransferPlan& plan, const EngineTensor& tensor);

/// What a tp rank holds of a piece, wherever that lies: offsets from where the piece's are counted. rows = 0 when
/// nothing.
Segment segment_of(const TransferPlan& plan, std::size_t tp_rank, const Piece& piece);

/// A whole piece as it lies in its source region, from nowhere to itself.
Segment segment_of(const Model& model, const Piece& piece);

/// Of all of a plan but its digest: 32 hexadecimal digits.
std::string digest_of(const TransferPlan& plan);

/// Proves a plan: its layout (see prove_layout()); every byte of every slot is part of exactly one shard or is padding;
/// shards read every byte of every parameter once, and more often only where its rule replicates; segments bring each
/// byte of each shard once, from one piece that holds it; and the parts of a schedule carry the same bytes as its
/// segments, whether by copies and tasks or by copies and pack steps. Returns the first violation in words, or an empty
/// string.
std::string prove_coverage(const TransferPlan& plan);
/// Its last part, for one schedule.
std::string prove_schedule(const Schedule& schedule, std::size_t parameter_count, std::uint64_t pack_bytes);

/// How much of a plan describe() shows.
struct PlanView {
  bool all = false;   ///< a row for each engine tensor and rank; otherwise those that are equal have one
  bool wide = false;  ///< a line per row; otherwise what fits 80 columns, tensors in two lines
};

/// The text of `weightcast plan`: bytes per rank, trainer egress, what replication adds (itemised), and the verdict of
/// prove_coverage(), or the one given; then the tables of engine tensors, of ranks, and of trainer ranks when there are
/// several.
std::string describe(const TransferPlan& plan, PlanView view = {});
std::string describe(const TransferPlan& plan, const std::string& violation, PlanView view = {});

}  // namespace weightcast
