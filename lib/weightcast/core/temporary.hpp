#pragma once

#include <string>
#include <utility>

#include "weightcast/core/unique_handle.hpp"

/// What output is while it is not finished: files and folders under names that nobody else has, gone when their writer
/// is. Internal to the writers of outputs.
namespace weightcast {

struct FdTraits {
  using Type = int;
  static constexpr int null() noexcept { return -1; }
  static void close(int fd) noexcept;
};
using UniqueFd = UniqueHandle<FdTraits>;

/// An exclusive lock on a folder, for the moment in which names in it are compared and changed. Every writer of this
/// program takes it. Waits for some seconds at most; where the file system has no locks, nobody is kept out.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);
  bool held() const noexcept { return held_; }

 private:
  UniqueFd fd_;
  bool held_ = false;
};

/// A file, or a folder with what is in it, that is removed when this is destroyed or when the process is told to end,
/// unless keep() came first.
class Unfinished {
 public:
  /// `large`: worth removing at once when the process is told to end (discard_large_output()).
  Unfinished(std::string path, bool large);
  ~Unfinished();
  Unfinished(Unfinished&&) = delete;

  const std::string& path() const noexcept { return path_; }
  /// From now on a signal does not remove it. Error(deadline) when one has.
  void hold();
  /// It is finished and has its own name.
  void keep() noexcept { kept_ = true; }

 private:
  std::string path_;
  bool large_, remembered_, kept_ = false;
};

/// A new file or folder beside `target` with a name of its own, `<target>.tmp.<machine>.<random>`. What writers of the
/// same target have left that died (their locks are gone, or they are of another machine and a day old) is removed.
class Temporary {
 public:
  enum class Kind { file, folder };
  /// `shown` is the name for messages. Error(cant_create).
  Temporary(const std::string& target, Kind kind, bool large, const std::string& shown);

  const std::string& path() const noexcept { return unfinished_.path(); }
  int fd() const noexcept { return fd_.get(); }
  void hold() { unfinished_.hold(); }
  void keep() noexcept { unfinished_.keep(); }

 private:
  static std::pair<UniqueFd, std::string> make(const std::string& target, Kind kind, const std::string& shown);
  Temporary(std::pair<UniqueFd, std::string> made, bool large);

  UniqueFd fd_;  // holds the lock by which others see that this writer lives
  Unfinished unfinished_;
};

/// Removes what is unfinished, all of it or only the large. May be called from a signal handler.
void discard_unfinished_output() noexcept;
void discard_large_output() noexcept;

/// The folder that a path is in, and its last component.
std::pair<std::string, std::string> split_path(const std::string& path);
/// rename() that fails with EEXIST when `to` is there, where the file system can tell. 0, or -1 and errno.
int rename_new(const std::string& from, const std::string& to) noexcept;

/// Whether a name in a folder is that of a Temporary for the target `base` in that folder (its last component).
bool temporary_of(const std::string& base, const std::string& name);

}  // namespace weightcast
