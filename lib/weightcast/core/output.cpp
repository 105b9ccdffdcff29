#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <thread>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

constexpr int most_links = 40;  // as the kernel

[[noreturn]] void cannot_create(const std::string& path, const std::string& reason, const std::string& hint) {
  throw Error(ExitCode::cant_create, fmt::format("cannot create {}: {}", path, reason), hint);
}

const char* advice_for(int error) {
  switch (error) {
    case EFBIG: return "raise the limit on the size of files (ulimit -f) or write less";
    case EDQUOT: return "free some of your quota on that file system or write elsewhere";
    default: return "free some space on that file system or write elsewhere";
  }
}

[[noreturn]] void cannot_write(const std::string& path, std::uint64_t offset, int error) {
  throw Error(ExitCode::io_error, fmt::format("cannot write {} at byte {}: {}", path, offset, std::strerror(error)),
              advice_for(error));
}

/// The target of an output that is not written from its beginning to its end.
const std::string& file_of(const OutputName& name) {
  if (name.stream()) cannot_create(name.path(), "it is a pipe or a device, and this needs a file", "name a file");
  return name.target();
}

/// The name that a symbolic link holds, seen from the folder of the link.
std::string read_link(const std::string& path) {
  std::array<char, PATH_MAX> text{};
  const ssize_t size = ::readlink(path.c_str(), text.data(), text.size());
  if (size < 0) return path;
  const std::string link(text.data(), static_cast<std::size_t>(size));
  return link.starts_with('/') ? link : split_path(path).first + "/" + link;
}

/// Links in /proc lead to what a process has open, whatever name that has.
bool in_proc(const std::string& path) {
  struct statfs system {};
  return ::statfs(split_path(path).first.c_str(), &system) == 0 && system.f_type == PROC_SUPER_MAGIC;
}

/// Keeps a pipe that nobody reads any more from ending the process while in scope.
class NoPipeSignal {
 public:
  NoPipeSignal() noexcept {
    ::sigemptyset(&pipe_);
    ::sigaddset(&pipe_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoPipeSignal() {
    const timespec now{0, 0};
    if (sigismember(&before_, SIGPIPE) == 0) ::sigtimedwait(&pipe_, nullptr, &now);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoPipeSignal(NoPipeSignal&&) = delete;

 private:
  sigset_t pipe_{}, before_{};
};

/// Waits a moment; Error(cant_create) when that is over or a signal came.
void wait_for_reader(const std::string& path, pollfd* file, Deadline deadline) {
  const int ready = ::poll(file, file == nullptr ? 0 : 1, 20);
  if (ready > 0) return;
  if (ready == 0 && !deadline.passed()) return;
  cannot_create(path, "it is a pipe that nobody reads", "start what reads it before the job ends, or name a file");
}

void write_stream(const OutputName& name, const std::string& text, Deadline deadline) {
  const NoPipeSignal guard;
  UniqueFd fd;
  while (true) {
    fd.reset(::open(name.target().c_str(), O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (fd) break;
    if (errno != ENXIO) cannot_create(name.path(), std::strerror(errno), "check its permissions, or name a file");
    wait_for_reader(name.path(), nullptr, deadline);
  }
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(fd.get(), text.data() + done, text.size() - done);
    if (count >= 0) {
      done += static_cast<std::size_t>(count);
    } else if (errno == EAGAIN) {
      pollfd file{fd.get(), POLLOUT, 0};
      wait_for_reader(name.path(), &file, deadline);
    } else if (errno != EINTR) {
      cannot_write(name.path(), done, errno);
    }
  }
}

}  // namespace

void written_by_others(const std::string& path) {
  throw Error(ExitCode::cant_create,
              fmt::format("{} was written by somebody else since this job began, and is left as it is now", path),
              "do not let two jobs write the same name");
}

std::optional<Identity> identify(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return {};
  return Identity{status.st_dev, status.st_ino, status.st_ctim.tv_sec, status.st_ctim.tv_nsec};
}

std::string follow_links(const std::string& path) {
  std::string target = path;
  struct stat status {};
  for (int i = 0; ::lstat(target.c_str(), &status) == 0 && S_ISLNK(status.st_mode) && !in_proc(target); ++i) {
    if (i == most_links) cannot_create(path, std::strerror(ELOOP), "remove the link that leads to itself");
    target = read_link(target);
  }
  return target;
}

OutputName::OutputName(const std::string& path, Existing existing) : path_(path), target_(follow_links(path)) {
  struct stat status {};
  if (::stat(target_.c_str(), &status) != 0) {
    if (errno != ENOENT) cannot_create(path_, std::strerror(errno), "check the path and its permissions");
    return;
  }
  if (S_ISDIR(status.st_mode)) cannot_create(path_, "it is a folder", "name a file in it");
  if (S_ISSOCK(status.st_mode)) cannot_create(path_, "it is a socket", "name a file or a pipe");
  if (S_ISBLK(status.st_mode))
    cannot_create(path_, "it is a block device, whose contents would be lost", "name a file");
  stream_ = !S_ISREG(status.st_mode) || in_proc(target_);
  if (stream_) {
    if (::access(target_.c_str(), W_OK) != 0)
      cannot_create(path_, std::strerror(errno), "check its permissions, or name a file");
    return;
  }
  if (existing == Existing::refuse) {
    cannot_create(path_,
                  fmt::format("a file of {} is there already", format_size(static_cast<std::uint64_t>(status.st_size))),
                  "choose another name, or replace it with --force");
  }
  there_ = identify(target_);
}

void OutputName::take(const std::string& temporary) const {
  const FolderLock lock(split_path(target_).first);
  if (identify(target_) != there_) written_by_others(path_);
  const int status = there_ ? std::rename(temporary.c_str(), target_.c_str()) : rename_new(temporary, target_);
  if (status == 0) return;
  if (errno == EEXIST) written_by_others(path_);
  fail(ExitCode::io_error, "cannot rename {} to {}: {}", temporary, target_, std::strerror(errno));
}

OutputFile::OutputFile(OutputName name, std::uint64_t reserve_bytes)
    : name_(std::move(name)), temporary_(file_of(name_), Temporary::Kind::file, reserve_bytes > 0, name_.path()) {
  if (reserve_bytes > 0) reserve_space(temporary_.fd(), reserve_bytes, name_.path());
}

void OutputFile::write(std::uint64_t offset, std::span<const std::byte> source) {
  write_at(temporary_.fd(), offset, source, name_.path());
}

void OutputFile::commit() {
  sync_to_disk(temporary_.fd(), name_.path());
  temporary_.hold();
  name_.take(temporary_.path());
  temporary_.keep();
  sync_folder(split_path(name_.target()).first);
}

void write_text_file(const OutputName& name, const std::string& text, Deadline deadline) {
  if (name.stream()) return write_stream(name, text, deadline);
  OutputFile file(name);
  file.write(0, std::as_bytes(std::span(text)));
  file.commit();
}

void expect_space(const std::string& path, std::uint64_t bytes) {
  struct statvfs system {};
  if (::statvfs(split_path(path).first.c_str(), &system) != 0 || system.f_blocks == 0) return;
  const auto blocks = ::geteuid() == 0 ? system.f_bfree : system.f_bavail;  // some are kept for root
  const auto free_bytes = checked_multiply(blocks, system.f_frsize);
  if (!free_bytes || *free_bytes >= bytes) return;
  throw Error(
      ExitCode::io_error,
      fmt::format("{} needs {}, but its file system has {} left", path, format_size(bytes), format_size(*free_bytes)),
      advice_for(ENOSPC));
}

void reserve_space(int fd, std::uint64_t bytes, const std::string& path) {
  int status = EINTR;
  while (status == EINTR) status = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  if (status == 0) return;
  throw Error(ExitCode::io_error, fmt::format("cannot reserve {} bytes for {}: {}", bytes, path, std::strerror(status)),
              advice_for(status));
}

void write_at(int fd, std::uint64_t offset, std::span<const std::byte> source, const std::string& path) {
  while (!source.empty()) {
    const ssize_t count = ::pwrite(fd, source.data(), source.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) cannot_write(path, offset, errno);
    // Start the disk now, or all of the file waits in memory for the fsync at the end. A hint: failure costs nothing.
    if (count >= ssize_t{1 << 20}) ::sync_file_range(fd, static_cast<off_t>(offset), count, SYNC_FILE_RANGE_WRITE);
    offset += static_cast<std::uint64_t>(count);
    source = source.subspan(static_cast<std::size_t>(count));
  }
}

void sync_to_disk(int fd, const std::string& path) {
  int error = 0;
  // In a thread of its own: nothing interrupts fsync, and the handler of a signal must not wait for a slow disk.
  std::jthread([&] { error = ::fsync(fd) == 0 ? 0 : errno; }).join();
  if (error != 0) fail(ExitCode::io_error, "cannot write {} to disk: {}", path, std::strerror(error));
}

void sync_folder(const std::string& folder) noexcept {
  const UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd) ::fsync(fd.get());
}

}  // namespace weightcast
