#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "weightcast/core/unique_handle.hpp"

/// Files as plain descriptors: complete reads and writes, and output that appears whole or not at all.
namespace weightcast {

struct FdTraits {
  using Type = int;
  static constexpr int null() noexcept { return -1; }
  static void close(int fd) noexcept;
};
using UniqueFd = UniqueHandle<FdTraits>;

/// A regular file opened for reading (symbolic links are followed: Hugging Face caches consist of them).
/// read() may be called from several threads.
class InputFile {
 public:
  /// Error(no_input) when it is missing, unreadable or not a regular file.
  explicit InputFile(const std::string& path);

  const std::string& path() const noexcept { return path_; }
  std::uint64_t size() const noexcept { return size_; }
  /// Fills `destination` from byte `offset` by pread: a file that became shorter is Error(bad_data), never a signal.
  void read(std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  std::string path_;
  UniqueFd fd_;
  std::uint64_t size_ = 0;
};

/// The whole of a small file. Error(bad_data) when it is larger than `limit` bytes.
std::string read_text_file(const std::string& path, std::uint64_t limit);

/// Output under a temporary name beside `path`; commit() makes it appear under its own name, complete and on disk.
/// Destroyed before commit(), it leaves nothing behind.
class OutputFile {
 public:
  /// `reserve_bytes` of disk are set aside first, so that a full disk is found before anything is written.
  /// Error(cant_create) when the file cannot be created, Error(io_error) when the disk is full.
  explicit OutputFile(const std::string& path, std::uint64_t reserve_bytes = 0);
  ~OutputFile();
  OutputFile(OutputFile&&) = delete;

  const std::string& temporary_path() const noexcept { return temporary_; }
  /// Writes all of `source` at byte `offset`. May be called from several threads. Error(io_error).
  void write(std::uint64_t offset, std::span<const std::byte> source);
  /// fsync, rename to `path`, fsync of the folder. Error(io_error).
  void commit();

 private:
  std::string path_, temporary_;
  UniqueFd fd_;
  bool committed_ = false;
};

/// Removes the temporary files of all OutputFiles that are not committed. May be called from a signal handler.
void discard_unfinished_output() noexcept;

/// Writes `text` to `path` through OutputFile.
void write_text_file(const std::string& path, const std::string& text);

/// Host name, for messages.
std::string host_name();

}  // namespace weightcast
