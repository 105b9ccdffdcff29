#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/tensor/tensor_info.hpp"

namespace weightcast {

struct CheckpointFiles;

/// Tensors on disk, read only: one safetensors file, an index and its shards, or a folder that holds either (format.md
/// says what of a folder is taken). All headers are checked when it is opened; no data is read then, unless a folder
/// holds two checkpoints, which must be the same.
class Checkpoint {
 public:
  /// `path`: a folder, a repository of a Hugging Face Hub cache, a safetensors file, or an index (*.json).
  /// Error(no_input) when nothing is there, Error(bad_data) when a file breaks a rule of format.md, the index and the
  /// shards disagree (each difference named), or the folder holds two checkpoints that differ.
  static Checkpoint open(const std::string& path);

  /// Path as given to open().
  const std::string& path() const noexcept { return path_; }
  /// The folder of its files, where its config.json belongs: of a Hub cache, that of the snapshot.
  const std::string& folder() const noexcept { return folder_; }
  /// What people should know of how it was read, a line each: what lies beside it and was not used, and the like.
  const std::vector<std::string>& notes() const noexcept { return notes_; }
  /// All tensors, sorted by name.
  std::span<const TensorInfo> tensors() const noexcept { return tensors_; }
  /// Index into tensors(), or -1.
  std::ptrdiff_t find(std::string_view name) const noexcept;
  /// Reads bytes [offset, offset + destination.size()) of tensor `index`. Thread-safe. Error(bad_data) when the file
  /// became shorter.
  void read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  struct Place {
    std::size_t file;
    std::uint64_t offset, size;  // bytes in that file
  };
  /// Opens the files of one checkpoint.
  explicit Checkpoint(const CheckpointFiles& from);
  /// Names the first difference of two checkpoints, in names, types, shapes or bytes; nothing when they are the same.
  static std::string difference(const Checkpoint& a, const Checkpoint& b);

  std::string path_, folder_;
  std::vector<std::string> notes_;
  std::vector<InputFile> files_;
  std::vector<TensorInfo> tensors_;  // sorted by name
  std::vector<Place> places_;        // of each tensor
};

/// Largest block that write_checkpoint() asks for at a time; a multiple of every element size.
inline constexpr std::uint64_t checkpoint_block_bytes = 8 * mebibyte;

/// What write_checkpoint() writes: `fill(index, offset, destination)` supplies bytes of tensors[index]; it is called
/// from several threads, in blocks of at most checkpoint_block_bytes that begin at multiples of it, each byte once. The
/// names must differ.
struct CheckpointContent {
  std::vector<TensorInfo> tensors;
  std::function<void(std::size_t index, std::uint64_t offset, std::span<std::byte> destination)> fill;
};

/// Writes the folder `directory` (created when missing): `model.safetensors`, or, when the tensors need more than one
/// file of `shard_bytes`, `model-00001-of-0000N.safetensors` and the index; and `config.json` with the text
/// `config_json` (left out when empty). Space for all is reserved first. The folder appears whole or not at all; with
/// Existing::replace it takes the place of all that was there, which is left alone until then. `progress(bytes)` is
/// called after each block, from several threads. Errors: those of OutputFolder, and what `fill` and `progress` throw.
void write_checkpoint(const std::string& directory, const CheckpointContent& content, std::uint64_t shard_bytes,
                      const std::string& config_json, std::size_t threads,
                      const std::function<void(std::uint64_t bytes)>& progress = {},
                      Existing existing = Existing::replace);

}  // namespace weightcast
