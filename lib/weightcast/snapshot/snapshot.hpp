#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/verify/digest.hpp"

/// HDF5 snapshots of one version of a model: one file, a dataset per parameter under its HF name and full shape,
/// whatever tp wrote it. The file format: format.md.
namespace weightcast {

/// What describes a snapshot besides its data.
struct SnapshotInfo {
  std::uint64_t version = 0;
  std::vector<Digest> digests;  ///< of each parameter, in the order of Model::parameters
  std::map<std::string, std::string>
      settings;  ///< for people: tp, transport, ...; kept in the user block, < 4 KiB in all
};

/// Error(cant_create) or Error(io_error) when write_snapshot() could not make a file under that name: makes one, as it
/// does, and removes it.
void probe_snapshot(const OutputName& name);

/// Writes `path` from the shards of one replica, in parallel. Collective over `replica` (rank = tp rank of `plan`).
/// `slot` is this rank's slot. Space is reserved first; the file appears under its name complete, on disk, or not at
/// all. `name` is `path` as rank 0 saw it when the job began (default: as it is now). `between` is called between
/// pieces, and may throw to end it. On failure every rank throws the same error: Error(cant_create), Error(io_error).
void write_snapshot(const std::string& path, const Communicator& replica, const TransferPlan& plan,
                    std::span<const std::byte> slot, const SnapshotInfo& info, Deadline deadline,
                    const std::optional<OutputName>& name = {}, FunctionRef<void()> between = {});

/// Writes the same file with one process and without MPI. `content(index, offset, destination)` supplies bytes of
/// parameter `index`, whole rows, each byte once, in ascending order. `info.digests` is not used: the digests of what
/// was written are returned. `progress(bytes)` is called after each block. Error(cant_create), Error(io_error), or what
/// `content` and `progress` throw.
std::vector<Digest> write_snapshot(
    const OutputName& name, const Model& model,
    FunctionRef<void(std::size_t index, std::uint64_t offset, std::span<std::byte> destination)> content,
    const SnapshotInfo& info, FunctionRef<void(std::uint64_t bytes)> progress = {});

/// A snapshot opened for reading, by one process. The library crashes on some malformed files, so open() first lets a
/// child process with limits walk the whole structure.
class Snapshot {
 public:
  /// Error(no_input) when missing; Error(busy) while a program has it open for writing; Error(bad_data) when it is not
  /// a snapshot, breaks format.md, or crashes the library.
  static Snapshot open(const std::string& path);

  std::uint64_t version() const noexcept { return version_; }
  /// All tensors, sorted by name, and the digest that the file claims for each.
  std::span<const TensorInfo> tensors() const noexcept { return tensors_; }
  std::span<const Digest> claimed_digests() const noexcept { return digests_; }
  /// Reads bytes [offset, offset + destination.size()) of tensor `index`; raw bits. Error(bad_data).
  void read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  explicit Snapshot(const std::string& path);

  InputFile file_;
  UniqueFd lock_;
  std::uint64_t version_ = 0;
  std::vector<TensorInfo> tensors_;
  std::vector<Digest> digests_;
  std::vector<std::uint64_t> offsets_;
};

/// Whether the file at `path` begins like an HDF5 file.
bool looks_like_hdf5(const std::string& path);

}  // namespace weightcast
