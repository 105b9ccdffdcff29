#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

/// Named tensors on disk, whatever the format: a checkpoint or an HDF5 snapshot. A checkpoint with its config.json is
/// seen as update sees it: the model's parameters under their names and of their dtype. One without, or one that is not
/// that model's, is seen as it is stored.
class TensorReader {
 public:
  /// `ignore`: see match_checkpoint(). Error(no_input), Error(bad_data), Error(usage).
  TensorReader(const std::string& path, std::vector<std::string> ignore);

  /// The model that a checkpoint was matched with, or null.
  const Model* model() const noexcept { return source_ ? &model_ : nullptr; }
  /// Sees a checkpoint that has no config.json as `model`, if it fits.
  void match_with(const Model& model);

  /// All tensors, sorted by name.
  std::span<const TensorInfo> tensors() const noexcept { return tensors_; }
  /// The dtype of tensor `index` in the file.
  DType stored_dtype(std::size_t index) const;
  /// The digests that a snapshot claims for them; empty for the other formats.
  std::span<const Digest> claimed_digests() const noexcept;
  /// Bytes of all tensors.
  std::uint64_t size_bytes() const;
  /// Reads a part of tensor `index`. Thread-safe.
  void read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;
  /// The same of the bytes that are in the file, of type stored_dtype().
  void read_stored(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;

  /// What people should know of how it is seen, a line each; without what rounding() says.
  const std::vector<std::string>& notes() const noexcept { return notes_; }
  /// Which tensors are rounded by read(); empty: none.
  std::string rounding() const { return source_ ? source_->match().rounding : std::string(); }

 private:
  void match(const ModelConfig& config);
  void see_as_stored();

  std::string path_;
  std::vector<std::string> ignore_, notes_;
  std::optional<Snapshot> snapshot_;
  std::optional<Checkpoint> checkpoint_;      // as stored
  Model model_;                               // of source_
  std::unique_ptr<CheckpointSource> source_;  // matched
  std::vector<TensorInfo> tensors_;
  std::vector<std::size_t> places_;  // of each: the parameter, or the tensor of checkpoint_
};

}  // namespace weightcast
