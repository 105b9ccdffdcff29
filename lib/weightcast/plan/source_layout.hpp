#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "weightcast/model/parameter_rules.hpp"

/// Which trainer rank has which part of which parameter where: what a rank plan says of engines, said of the trainer.
/// A value, the same on every rank. Pure.
namespace weightcast {

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
  std::vector<Piece> pieces;     ///< by parameter; none begins before another one has ended
  std::uint64_t size_bytes = 0;  ///< of the region
  bool operator==(const SourceRegion&) const = default;
};

struct SourceLayout {
  std::vector<SourceRegion> ranks;  ///< by trainer rank
  bool operator==(const SourceLayout&) const = default;
};

/// One trainer rank has everything: whole parameters in the order of the model, aligned.
SourceLayout whole_layout(const Model& model);

/// Proves a layout: pieces are inside their region and do not meet there, and every element of every parameter is in
/// exactly one of them. Returns the first violation in words, or an empty string.
std::string prove_layout(const Model& model, const SourceLayout& layout);

}  // namespace weightcast
