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
#include "weightcast/snapshot/delta_layer.hpp"
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
/// does, and removes it. Nor is there one without the space for all of `model`.
void probe_snapshot(const OutputName& name, const Model& model);

/// Writes `path` from the shards of one replica, in parallel. Collective over `replica` (rank = tp rank of `plan`).
/// `slot` is this rank's slot. Space is reserved first; the file appears under its name complete, on disk, or not at
/// all. `name` is `path` as rank 0 saw it when the job began (default: as it is now). `between` is called between
/// pieces, and may throw to end it. On failure every rank throws the same error: Error(cant_create), Error(io_error).
void write_snapshot(const std::string& path, const Communicator& replica, const TransferPlan& plan,
                    std::span<const std::byte> slot, const SnapshotInfo& info, Deadline deadline,
                    const std::optional<OutputName>& name = {}, FunctionRef<void()> between = {});

/// Writes the same file with one process and without MPI. `model`: tensors_of() one, a parameter for each tensor.
/// `content(index, offset, destination)` supplies bytes of parameter `index`, whole rows, each byte once, in ascending
/// order. `info.digests` is not used: the digests of what was written are returned. `progress(bytes)` is called after
/// each block. Error(cant_create), Error(io_error), or what `content` and `progress` throw.
std::vector<Digest> write_snapshot(
    const OutputName& name, const Model& model,
    FunctionRef<void(std::size_t index, std::uint64_t offset, std::span<std::byte> destination)> content,
    const SnapshotInfo& info, FunctionRef<void(std::uint64_t bytes)> progress = {});

/// A snapshot opened for reading, by one process: a whole one, or a delta with all that it builds on, down to a whole
/// one. The library crashes on some malformed files, so open() first lets a child process with limits walk the
/// structure of each.
class Snapshot {
 public:
  /// The most deltas that a chain may have.
  static constexpr std::size_t chain_limit = 100;

  /// Error(no_input) when it, or a base, is missing; Error(busy) while a program has one open for writing;
  /// Error(bad_data) when one is not a snapshot, breaks format.md, or crashes the library, when a base is not the one
  /// that the delta was made against, when a chain comes back to itself or is longer than chain_limit.
  static Snapshot open(const std::string& path);

  std::uint64_t version() const noexcept { return version_; }
  /// The model's sizes, as the text of a config.json.
  const std::string& config() const noexcept { return config_; }
  /// The paths of its files, the one that was opened first, the whole one last.
  const std::vector<std::string>& chain() const noexcept { return chain_; }
  const std::string& path() const noexcept { return chain_.front(); }
  /// The last delta; null for a whole snapshot.
  const DeltaLayer* delta() const noexcept { return deltas_.empty() ? nullptr : &deltas_.back(); }

  /// All tensors, sorted by name, and the digest that the file claims for each, and for the set.
  std::span<const TensorInfo> tensors() const noexcept { return tensors_; }
  std::span<const Digest> claimed_digests() const noexcept { return digests_; }
  const Digest& claimed_digest() const noexcept { return digest_; }
  /// Reads bytes [offset, offset + destination.size()) of tensor `index`; raw bits, not held against the digest.
  /// Thread-safe. Error(bad_data).
  void read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  struct Opened;
  explicit Snapshot(std::vector<Opened> files);

  std::vector<std::string> chain_;
  std::vector<UniqueFd> locks_;
  std::uint64_t version_ = 0;
  std::string config_;
  Digest digest_;
  std::vector<TensorInfo> tensors_;
  std::vector<Digest> digests_;
  std::vector<std::uint64_t> offsets_;  // in whole_
  std::optional<InputFile> whole_;
  std::vector<DeltaLayer> deltas_;  // in the order in which they are applied
};

/// What a delta says, held against the whole.
struct DeltaSummary {
  std::vector<Digest> digests;  ///< of each parameter, in the order of Model::parameters
  std::uint64_t elements = 0, changed_elements = 0;
  std::uint64_t changed_parameters = 0;
  std::uint64_t delta_bytes = 0;  ///< of starts, indices and values
};

/// Writes `name` as a delta against `base` (format.md): the elements of which a bit differs. One process, no MPI. The
/// base's file must be in the folder of `name`, and becomes part of what the delta needs. `content` supplies any bytes
/// of parameter `index`, twice, from several threads; `progress(bytes)` is called as often, for 2 x the bytes of the
/// model at most. `info.digests` is not used. Memory: 8 bytes per 4096 elements, and 16 MiB per thread. `what` names
/// the content in messages. Error(bad_data) naming the first parameter that is not the base's in name, shape and type,
/// or that was different the second time; Error(mismatch) when the base is damaged; Error(usage) when it is elsewhere;
/// Error(config) when its chain is full; Error(cant_create) also when `name` is in that chain; Error(io_error).
DeltaSummary write_delta_snapshot(
    const OutputName& name, const Snapshot& base, const Model& model, const std::string& what,
    FunctionRef<void(std::size_t index, std::uint64_t offset, std::span<std::byte> destination)> content,
    const SnapshotInfo& info, FunctionRef<void(std::uint64_t bytes)> progress = {});

/// Whether the file at `path` begins like an HDF5 file.
bool looks_like_hdf5(const std::string& path);

}  // namespace weightcast
