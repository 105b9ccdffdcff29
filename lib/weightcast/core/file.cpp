#include "weightcast/core/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

std::string reason() {
  return std::strerror(errno);
}

/// Closes the folder of `path` onto the disk, so that a rename in it survives a power cut. Best effort.
void sync_folder(const std::string& path) {
  const auto folder = std::filesystem::path(path).parent_path();
  const UniqueFd fd(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd) ::fsync(fd.get());
}

/// Names of temporary files, for discard_unfinished_output(). More than these at a time are not remembered.
std::array<std::atomic<const char*>, 256> unfinished{};
static_assert(std::atomic<const char*>::is_always_lock_free);

void remember(const char* name) noexcept {
  for (auto& entry : unfinished) {
    const char* empty = nullptr;
    if (entry.compare_exchange_strong(empty, name)) return;
  }
}

void forget(const char* name) noexcept {
  for (auto& entry : unfinished) {
    const char* expected = name;
    if (entry.compare_exchange_strong(expected, nullptr)) return;
  }
}

}  // namespace

void FdTraits::close(int fd) noexcept {
  ::close(fd);
}

InputFile::InputFile(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (!fd_)
    throw Error(ExitCode::no_input, fmt::format("cannot open {}: {}", path, reason()),
                "check the path and its permissions");
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) fail(ExitCode::no_input, "cannot stat {}: {}", path, reason());
  if (!S_ISREG(status.st_mode)) fail(ExitCode::no_input, "{} is not a regular file", path);
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read(std::uint64_t offset, std::span<std::byte> destination) const {
  while (!destination.empty()) {
    const ssize_t count = ::pread(fd_.get(), destination.data(), destination.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(ExitCode::no_input, "cannot read {} at byte {}: {}", path_, offset, reason());
    if (count == 0)
      fail(ExitCode::bad_data, "{} ends at byte {}, {} bytes too early", path_, offset, destination.size());
    offset += static_cast<std::uint64_t>(count);
    destination = destination.subspan(static_cast<std::size_t>(count));
  }
}

std::string read_text_file(const std::string& path, std::uint64_t limit) {
  const InputFile file(path);
  if (file.size() > limit)
    fail(ExitCode::bad_data, "{} has {} bytes, more than the {} allowed", path, file.size(), limit);
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

OutputFile::OutputFile(const std::string& path, std::uint64_t reserve_bytes)
    : path_(path), temporary_(fmt::format("{}.tmp.{}", path, ::getpid())) {
  fd_.reset(::open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd_) {
    throw Error(ExitCode::cant_create, fmt::format("cannot create {}: {}", path, reason()),
                "check that the folder exists and may be written");
  }
  remember(temporary_.c_str());
  if (reserve_bytes == 0) return;
  const int status = ::posix_fallocate(fd_.get(), 0, static_cast<off_t>(reserve_bytes));
  if (status == 0) return;
  ::unlink(temporary_.c_str());
  forget(temporary_.c_str());
  throw Error(ExitCode::io_error,
              fmt::format("cannot reserve {} bytes for {}: {}", reserve_bytes, path, std::strerror(status)),
              "free some space on that file system or write elsewhere");
}

OutputFile::~OutputFile() {
  if (!committed_) ::unlink(temporary_.c_str());
  forget(temporary_.c_str());
}

void discard_unfinished_output() noexcept {
  for (auto& entry : unfinished) {
    if (const char* name = entry.load()) ::unlink(name);
  }
}

void OutputFile::write(std::uint64_t offset, std::span<const std::byte> source) {
  while (!source.empty()) {
    const ssize_t count = ::pwrite(fd_.get(), source.data(), source.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(ExitCode::io_error, "cannot write {} at byte {}: {}", path_, offset, reason());
    // Start the disk now, or all of the file waits in memory for the fsync of commit(). A hint: failure costs nothing.
    if (count >= ssize_t{1 << 20})
      ::sync_file_range(fd_.get(), static_cast<off_t>(offset), count, SYNC_FILE_RANGE_WRITE);
    offset += static_cast<std::uint64_t>(count);
    source = source.subspan(static_cast<std::size_t>(count));
  }
}

void OutputFile::commit() {
  if (::fsync(fd_.get()) != 0) fail(ExitCode::io_error, "cannot write {} to disk: {}", path_, reason());
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0)
    fail(ExitCode::io_error, "cannot rename {} to {}: {}", temporary_, path_, reason());
  committed_ = true;
  sync_folder(path_);
}

void write_text_file(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.write(0, std::as_bytes(std::span(text)));
  file.commit();
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace weightcast
