#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/file.hpp"
#include "weightcast/core/temporary.hpp"

namespace weightcast {

/// A folder of files that appears whole or not at all. It is filled under a temporary name and renamed by commit(); a
/// folder that is there and empty is filled instead (it may be a mount point), its last file last. Destroyed before
/// commit(), this leaves nothing behind.
class OutputFolder {
 public:
  /// `path`: created when missing, with the folders above it. Error(cant_create) when something is in it that is not to
  /// be replaced, naming that, and always for a file, or a folder in which this program runs.
  OutputFolder(const std::string& path, Existing existing);
  OutputFolder(OutputFolder&&) = delete;

  /// A new file in it, with `reserve_bytes` of disk set aside. Returns its number, for write().
  std::size_t add(const std::string& name, std::uint64_t reserve_bytes = 0);
  /// Writes all of `source` at byte `offset` of a file. May be called from several threads. Error(io_error).
  void write(std::size_t file, std::uint64_t offset, std::span<const std::byte> source) const;
  /// All files to disk, then all appear under `path`; with Existing::replace everything that was there is gone.
  /// Error(cant_create) when somebody else has written there since this was made, Error(io_error).
  void commit();

 private:
  struct File {
    std::string name;
    UniqueFd fd;
    std::unique_ptr<Unfinished> unfinished;
  };
  std::string shown(const std::string& name) const;
  void fill_folder();
  void take_name();

  std::string path_, target_;
  std::optional<Identity> there_;
  bool fill_ = false;  // the empty folder that is there
  std::unique_ptr<Temporary> stage_;
  std::vector<File> files_;
};

}  // namespace weightcast
