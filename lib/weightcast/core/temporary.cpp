#include "weightcast/core/temporary.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <string_view>

#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {
namespace fs = std::filesystem;

constexpr std::string_view mark = ".tmp.";
constexpr std::size_t machine_digits = 8, random_digits = 16, most_of_name = 200;
constexpr std::time_t day_s = 24 * 60 * 60;
constexpr int attempts = 100;

constexpr std::string_view unknown_machine = "00000000";

/// What the containers of one machine have in common until it starts again: as far as locks can be trusted.
const std::string& machine() {
  static const std::string digits = [] {
    std::array<char, machine_digits + 1> id{};
    const UniqueFd fd(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
    const bool whole = fd && ::read(fd.get(), id.data(), machine_digits) == static_cast<ssize_t>(machine_digits);
    return std::string(whole ? std::string_view(id.data()) : unknown_machine);
  }();
  return digits;
}

std::string random_name(const std::string& target) {
  std::uint64_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != static_cast<ssize_t>(sizeof random))
    fail(ExitCode::internal, "cannot get random bytes: {}", std::strerror(errno));
  const auto [folder, base] = split_path(target);
  return fmt::format("{}/{}{}{}.{:016x}", folder, base.substr(0, most_of_name), mark, machine(), random);
}

/// The lock of a living writer: on one byte beyond all data and not by flock(), so that neither HDF5 nor MPI-IO meets
/// it.
struct flock life(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = off_t{1} << 62;
  lock.l_len = 1;
  return lock;
}

/// Network file systems know locks of whole files only, or lock what others read and write: there nobody is asked.
bool keeps_locks(int fd) {
  struct statfs system {};
  if (::fstatfs(fd, &system) != 0) return false;
  const auto type = static_cast<std::uint32_t>(system.f_type);
  return type != NFS_SUPER_MAGIC && type != SMB_SUPER_MAGIC && type != CIFS_SUPER_MAGIC && type != SMB2_SUPER_MAGIC;
}

bool lives(const std::string& path, std::string_view made_on) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) return true;
  auto lock = life(F_WRLCK);
  if (made_on == machine() && made_on != unknown_machine && keeps_locks(fd.get()) &&
      ::fcntl(fd.get(), F_OFD_GETLK, &lock) == 0)
    return lock.l_type != F_UNLCK;
  return std::time(nullptr) - status.st_mtime < day_s;
}

void remove_left(const std::string& target) {
  const auto [folder, base] = split_path(target);
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (!temporary_of(base, name)) continue;
    const auto made_on =
        std::string_view(name).substr(name.size() - random_digits - 1 - machine_digits, machine_digits);
    std::error_code ignored;
    if (!lives(entry->path(), made_on)) fs::remove_all(entry->path(), ignored);
  }
}

/// What is removed from a signal handler. More than these at a time are not remembered.
struct Remembered {
  std::array<std::atomic<const char*>, 2048> names{};

  bool add(const char* name) noexcept {
    for (auto& entry : names) {
      const char* empty = nullptr;
      if (entry.compare_exchange_strong(empty, name)) return true;
    }
    return false;
  }
  /// False when it is not there: removed by discard().
  bool forget(const char* name) noexcept {
    for (auto& entry : names) {
      const char* expected = name;
      if (entry.compare_exchange_strong(expected, nullptr)) return true;
    }
    return false;
  }
  void discard() noexcept {
    for (auto& entry : names) {
      const char* name = entry.load();
      if (name == nullptr || (::unlink(name) != 0 && errno == EISDIR)) continue;  // a folder: when its files are gone
      entry.compare_exchange_strong(name, nullptr);
    }
    for (auto& entry : names) {
      if (const char* name = entry.load()) ::rmdir(name);
    }
  }
};
static_assert(std::atomic<const char*>::is_always_lock_free);
Remembered large_ones, small_ones;

}  // namespace

void FdTraits::close(int fd) noexcept {
  ::close(fd);
}

FolderLock::FolderLock(const std::string& folder) : fd_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  const timespec pause{0, 20'000'000};
  for (int i = 0; fd_ && i < attempts; ++i) {
    held_ = ::flock(fd_.get(), LOCK_EX | LOCK_NB) == 0;
    if (held_ || (errno != EWOULDBLOCK && errno != EINTR)) return;
    ::nanosleep(&pause, nullptr);
  }
}

Unfinished::Unfinished(std::string path, bool large) : path_(std::move(path)), large_(large) {
  remembered_ = (large_ ? large_ones : small_ones).add(path_.c_str());
}

Unfinished::~Unfinished() {
  if (!kept_) {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  if (remembered_) (large_ ? large_ones : small_ones).forget(path_.c_str());
}

void Unfinished::hold() {
  const bool removed = remembered_ && !(large_ ? large_ones : small_ones).forget(path_.c_str());
  remembered_ = false;
  if (removed) fail(ExitCode::deadline, "{} was given up when this process was told to end", path_);
}

Temporary::Temporary(const std::string& target, Kind kind, bool large, const std::string& shown)
    : Temporary(make(target, kind, shown), large) {}

Temporary::Temporary(std::pair<UniqueFd, std::string> made, bool large)
    : fd_(std::move(made.first)), unfinished_(std::move(made.second), large) {}

std::pair<UniqueFd, std::string> Temporary::make(const std::string& target, Kind kind, const std::string& shown) {
  const FolderLock lock(split_path(target).first);
  if (lock.held()) remove_left(target);
  std::string path;
  int error = EEXIST;
  for (int i = 0; error == EEXIST && i < attempts; ++i) {
    path = random_name(target);
    UniqueFd fd;
    if (kind == Kind::file) {
      fd.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    } else if (::mkdir(path.c_str(), 0777) == 0) {
      fd.reset(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    }
    error = errno;
    if (!fd) continue;
    // A folder is open for reading, which allows no more than a shared lock; whoever asks sees either.
    auto living = life(kind == Kind::file ? F_WRLCK : F_RDLCK);
    if (keeps_locks(fd.get())) ::fcntl(fd.get(), F_OFD_SETLK, &living);
    return {std::move(fd), path};
  }
  throw Error(ExitCode::cant_create, fmt::format("cannot create {}: {}", shown, std::strerror(error)),
              "check that the folder exists and may be written");
}

std::pair<std::string, std::string> split_path(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

int rename_new(const std::string& from, const std::string& to) noexcept {
  const int status = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE);
  return status != 0 && errno == EINVAL ? std::rename(from.c_str(), to.c_str()) : status;  // no such flag there
}

bool temporary_of(const std::string& base, const std::string& name) {
  const auto stem = base.substr(0, most_of_name) + std::string(mark);
  if (!name.starts_with(stem) || name.size() != stem.size() + machine_digits + 1 + random_digits) return false;
  auto rest = name.substr(stem.size());
  if (rest[machine_digits] != '.') return false;
  rest.erase(machine_digits, 1);
  return rest.find_first_not_of("0123456789abcdef") == std::string::npos;
}

void discard_unfinished_output() noexcept {
  large_ones.discard();
  small_ones.discard();
}

void discard_large_output() noexcept {
  large_ones.discard();
}

}  // namespace weightcast
