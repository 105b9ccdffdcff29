#include "weightcast/core/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "weightcast/core/error.hpp"
#include "weightcast/core/wrong_path.hpp"

namespace weightcast {
namespace {

std::string reason() {
  return std::strerror(errno);
}

}  // namespace

InputFile::InputFile(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (!fd_) throw cannot_open(path, errno);
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) fail(ExitCode::no_input, "cannot stat {}: {}", path, reason());
  if (S_ISDIR(status.st_mode)) throw Error(ExitCode::no_input, path + " is a folder", "name a file in it");
  if (!S_ISREG(status.st_mode)) {
    throw Error(ExitCode::no_input, path + " is not a regular file",
                "copy what it gives into a file: files are read from any place, and more than once");
  }
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

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace weightcast
