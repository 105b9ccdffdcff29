#pragma once

#include <cstdint>
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

struct WalkedFile {
  Digest digest;  ///< that the file claims for the whole set
  std::vector<WalkedDataset> datasets;
};

/// Walks the file at `path` in a child process with limits on memory and time. Error(bad_data) for what format.md
/// refuses, and when the child dies. What comes back is well-formed, but as true as the file is.
WalkedFile walk_snapshot_apart(const std::string& path);

}  // namespace weightcast
