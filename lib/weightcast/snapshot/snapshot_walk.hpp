#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weightcast/tensor/tensor_info.hpp"
#include "weightcast/verify/digest.hpp"

/// The structure of a snapshot file, read by a child process. Internal to snapshot.
namespace weightcast {

struct WalkedDataset {
  TensorInfo info;
  Digest digest;
  std::uint64_t offset = 0;  ///< of the first byte in the file
};

/// A row of numbers in the file.
struct WalkedRun {
  std::uint64_t offset = 0, count = 0, size_bytes = 0;
};

/// What a delta says of one parameter that changed.
struct WalkedChange {
  std::string name;
  DType dtype = DType::BF16;
  Digest base_digest, digest;  ///< before and after
  WalkedRun starts, indices, values;
};

struct WalkedDelta {
  std::string base;    ///< name of the file
  Digest base_digest;  ///< of the whole set in it
  std::vector<WalkedChange> changes;
};

struct WalkedFile {
  Digest digest;       ///< that the file claims for the whole set
  std::string config;  ///< of the model
  std::vector<WalkedDataset> datasets;
  std::optional<WalkedDelta> delta;  ///< instead of datasets
};

/// Walks the file in this process. Error(bad_data) for what format.md refuses; may crash on malformed files.
WalkedFile walk_snapshot(const std::string& path);

/// The same in a child process with limits on memory and time. Error(bad_data) also when the child dies. What comes
/// back is well-formed, but as true as the file is.
WalkedFile walk_snapshot_apart(const std::string& path);

}  // namespace weightcast
