#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <variant>

#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/snapshot/snapshot.hpp"

namespace weightcast {

/// Named tensors on disk, whatever the format: a checkpoint folder, a safetensors file or an HDF5 snapshot.
class TensorReader {
 public:
  /// Error(no_input), Error(bad_data).
  explicit TensorReader(const std::string& path);

  /// All tensors, sorted by name.
  std::span<const TensorInfo> tensors() const noexcept;
  /// The digests that a snapshot claims for them; empty for the other formats.
  std::span<const Digest> claimed_digests() const noexcept;
  /// Bytes of all tensors.
  std::uint64_t size_bytes() const;
  /// Reads a part of tensor `index`. Thread-safe.
  void read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  std::variant<Checkpoint, Snapshot> file_;
  mutable std::mutex hdf5_;  ///< the HDF5 library takes one caller at a time
};

}  // namespace weightcast
