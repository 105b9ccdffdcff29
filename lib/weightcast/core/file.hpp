#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/temporary.hpp"

/// Files as plain descriptors: complete reads and writes, and output that appears whole or not at all.
namespace weightcast {

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

/// What is to happen to something that lies where output goes.
enum class Existing { replace, refuse };

/// Tells what lies under a name from something else that has taken it since.
struct Identity {
  std::uint64_t device = 0, node = 0;
  std::int64_t changed_s = 0, changed_ns = 0;
  bool operator==(const Identity&) const = default;
};
/// Of what `path` itself names, links not followed; nothing when nothing is there.
std::optional<Identity> identify(const std::string& path);

/// What is behind `path` when it is a symbolic link to a link ..., whether that exists or not. A link in /proc, to what
/// some process has open, is not followed. Error(cant_create) when links form a ring.
std::string follow_links(const std::string& path);

/// Error(cant_create): `path` is no longer what it was when the job began.
[[noreturn]] void written_by_others(const std::string& path);

/// Where output goes, and what lies there when this is made. Made when a job begins, it keeps the writer at the job's
/// end from replacing what somebody else has written there meanwhile.
class OutputName {
 public:
  /// Symbolic links are followed, also to what does not exist yet. Error(cant_create) when a folder, a socket or a
  /// block device is there, when links form a ring, or when anything is there and is not to be replaced.
  OutputName(const std::string& path, Existing existing = Existing::replace);  // NOLINT: a path names what is there now

  /// As it was given: the name for messages.
  const std::string& path() const noexcept { return path_; }
  /// What is written, behind all links.
  const std::string& target() const noexcept { return target_; }
  /// A pipe or a character device: it is written to as it is and never replaced.
  bool stream() const noexcept { return stream_; }
  /// Renames the complete file `temporary` to target(). Error(cant_create), saying so, when what lies there is no
  /// longer what lay there; Error(io_error).
  void take(const std::string& temporary) const;

 private:
  std::string path_, target_;
  bool stream_ = false;
  std::optional<Identity> there_;
};

/// Output under a temporary name beside its own; commit() makes it appear there, complete and on disk. Destroyed before
/// commit(), it leaves nothing behind.
class OutputFile {
 public:
  /// `reserve_bytes` of disk are set aside first, so that a full disk is found before anything is written.
  /// Error(cant_create) when the file cannot be created or is a pipe or a device, Error(io_error) when the disk is
  /// full.
  explicit OutputFile(OutputName name, std::uint64_t reserve_bytes = 0);
  OutputFile(OutputFile&&) = delete;

  const std::string& temporary_path() const noexcept { return temporary_.path(); }
  /// Writes all of `source` at byte `offset`. May be called from several threads. Error(io_error).
  void write(std::uint64_t offset, std::span<const std::byte> source);
  /// fsync, rename to its name, fsync of the folder. Error(io_error), and those of OutputName::take().
  void commit();

 private:
  OutputName name_;
  Temporary temporary_;
};

/// Writes `text` through OutputFile, or into the pipe or device that has this name: waits until `deadline` for somebody
/// who reads the pipe. A signal ends that wait. Error(cant_create), Error(io_error).
void write_text_file(const OutputName& name, const std::string& text, Deadline deadline = Deadline::after(10));

/// Whether the file system of the folder of `path` has `bytes` left for this user; a quota may be tighter.
/// Error(io_error) with both figures. Where the file system does not say, nothing happens.
void expect_space(const std::string& path, std::uint64_t bytes);
/// Sets `bytes` of disk aside for an open file. Error(io_error), naming `path`, when they are not to be had.
void reserve_space(int fd, std::uint64_t bytes, const std::string& path);
/// Writes all of `source` at byte `offset` of an open file. Error(io_error).
void write_at(int fd, std::uint64_t offset, std::span<const std::byte> source, const std::string& path);
/// fsync, while which this thread still hears signals. Error(io_error).
void sync_to_disk(int fd, const std::string& path);
/// Closes a folder onto the disk, so that a rename in it survives a power cut. Best effort.
void sync_folder(const std::string& folder) noexcept;

/// Host name, for messages.
std::string host_name();

}  // namespace weightcast
