#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/file.hpp"
#include "weightcast/snapshot/snapshot_walk.hpp"

/// One delta of a chain, opened (format.md, "Deltas"). Internal to snapshot.
namespace weightcast {

/// Elements of a flattened parameter that the indices of one block count: they have 16 bits.
inline constexpr std::uint64_t delta_block_elements = 4096;

/// Blocks of a parameter with so many elements.
constexpr std::uint64_t delta_block_count(std::uint64_t elements) noexcept {
  return elements / delta_block_elements + (elements % delta_block_elements != 0 ? 1 : 0);
}

class DeltaLayer {
 public:
  /// `changes` are what the walk of `file` found; `tensors`, sorted by name, are those of the base, and `digests` what
  /// it claims for them: these become those of the version that the delta makes. Error(bad_data) when a change does not
  /// fit them or the file.
  DeltaLayer(InputFile file, std::vector<WalkedChange> changes, std::span<const TensorInfo> tensors,
             std::span<Digest> digests);

  /// `destination` has bytes [offset, offset + size) of tensor `index` of the base; now it has those of the version.
  /// Whatever the file holds, nothing else is written. Thread-safe. Error(bad_data) for starts or indices that do not
  /// fit: of the blocks that the range touches.
  void apply(std::size_t index, const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> destination) const;

  /// Parameters that changed, and elements of them.
  std::size_t changed_parameters() const noexcept { return changes_.size(); }
  std::uint64_t changed_elements() const noexcept;

 private:
  struct Change {
    std::size_t tensor;
    std::uint64_t starts, indices, values, entries;  // where they begin in the file, and how many
  };
  void apply_blocks(const Change& change, const TensorInfo& tensor, std::uint64_t first, std::uint64_t count,
                    std::uint64_t offset, std::span<std::byte> destination) const;
  [[noreturn]] void refuse(const TensorInfo& tensor, const std::string& why) const;

  InputFile file_;
  std::vector<Change> changes_;  // ascending by tensor
};

}  // namespace weightcast
