#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/model/parameter_rules.hpp"

/// Which trainer rank has which part of which parameter, and where in its memory: what the plan takes the weights from.
/// Pure: no MPI, GPU or files.
namespace weightcast {

/// Who has what, in a word.
enum class LayoutKind : std::uint8_t {
  whole,  ///< rank 0 has everything
  fsdp,   ///< FSDP2: of R ranks each has ceil(n/R) of a parameter's n rows, the last ones fewer or none; also of norms
  tp,     ///< each has what an engine's rank of tp R has, as parameters: not fused, no padding
  custom  ///< as said, rectangle by rectangle
};
std::string_view name(LayoutKind kind) noexcept;

/// A rectangle of one parameter in a trainer rank's source region.
struct Piece {
  std::size_t parameter_index = 0;
  Slice slice;               ///< of the parameter's matrix view, in elements; not empty
  std::uint64_t offset = 0;  ///< of its first element in the source region, in bytes
  std::uint64_t pitch = 0;   ///< bytes from row to row there
  bool operator==(const Piece&) const = default;
};

/// The source region of one trainer rank, once for each version that it holds.
struct SourceRegion {
  std::vector<Piece> pieces;     ///< by parameter, then by offset; none begins before another one has ended
  std::uint64_t size_bytes = 0;  ///< of the region; 0 when the rank has nothing
  bool operator==(const SourceRegion&) const = default;

  /// Of that parameter: none, one, or with a custom layout several.
  std::span<const Piece> pieces_of(std::size_t parameter) const noexcept;
};

/// An element may be held by several ranks, but only as part of the same rectangle: then any of them may send it.
struct SourceLayout {
  static constexpr std::uint64_t alignment_bytes = 256;  ///< of every piece, in the layouts that are made here

  std::vector<SourceRegion> ranks;  ///< by trainer rank
  bool operator==(const SourceLayout&) const = default;
};

// Layouts of `trainers` ranks. A region's pieces lie in packed rows one behind the other, in the order of the model and
// then of first row and column, so that a trainer rank's memory for a version is about what it has. Error(config)
// without a rank. Of one rank all but custom layouts are the same. Of a quantised model a rank has the scales of what it
// has of a matrix; where one of its pieces has only a part of what shares a scale, scales are cut as other parameters.

SourceLayout whole_layout(const Model& model, std::uint64_t trainers = 1);
SourceLayout fsdp_layout(const Model& model, std::uint64_t trainers);
/// Error(config) when a size does not divide (see shard_of()), with what can be had.
SourceLayout tp_layout(const Model& model, std::uint64_t trainers);
/// One of these three. Error(config) for a custom one.
SourceLayout make_layout(LayoutKind kind, const Model& model, std::uint64_t trainers);

/// What a trainer rank says it has; an empty rectangle says nothing.
struct HeldRectangle {
  std::size_t from = 0;  ///< trainer rank
  std::size_t parameter_index = 0;
  Slice slice;  ///< of the parameter's matrix view, in elements
};
/// The order in which they are said does not matter. Error(config) when ranks, parameters or rectangles are not there,
/// Error(bad_data) of check_layout().
SourceLayout custom_layout(const Model& model, std::uint64_t trainers, std::span<const HeldRectangle> rectangles);

/// Proves a layout: pieces are inside their region and do not meet there; every element of every parameter is in a
/// piece; and pieces of different ranks are the same rectangle or have nothing in common, those of one rank the latter.
/// Returns the first violation in words, or an empty string. Shares no code with those who make layouts.
std::string prove_layout(const Model& model, const SourceLayout& layout);
/// The same for people: Error(bad_data) listing every parameter that is missing, or held twice in different ways, with
/// the ranks (at most 20, then a count).
void check_layout(const Model& model, const SourceLayout& layout);

/// A trainer rank that has a rectangle, and where.
struct Holder {
  std::size_t from = 0;  ///< trainer rank
  Piece piece;
};
/// A rectangle and who has it: with a layout that was proven these are the model, each element once.
struct Holding {
  std::vector<Holder> holders;  ///< at least one, ascending

  const Piece& piece() const noexcept { return holders.front().piece; }
  /// Who digests it, and sends it where everybody gets it from one: who has the same takes turns.
  const Holder& speaker() const noexcept { return holders[piece().parameter_index % holders.size()]; }
  /// Who sends it to the `index`-th of `count` receivers: all holders send to as many, or one more; neighbours have
  /// the same or neighbouring senders. Where both sides hold the same, it is each receiver's counterpart.
  const Holder& sender(std::size_t index, std::size_t count) const noexcept {
    return holders[index * holders.size() / count];
  }
};
/// Of a proven layout; by parameter, then by row and column.
std::vector<Holding> holdings_of(const SourceLayout& layout);

}  // namespace weightcast
