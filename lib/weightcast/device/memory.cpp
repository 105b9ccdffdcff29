#include "weightcast/device/memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "weightcast/core/error.hpp"
#include "weightcast/core/expects.hpp"

namespace weightcast {
namespace {

Error no_memory(std::uint64_t size_bytes, const std::string& purpose) {
  return Error(ExitCode::unavailable, fmt::format("cannot allocate {} bytes for {}: {}", size_bytes, purpose, std::strerror(errno)),
               "use a larger machine, a larger --tp, or --commit in-place (one slot for each engine rank)");
}

}  // namespace

std::string_view name(MemoryKind kind) noexcept { return kind == MemoryKind::host ? "host" : "cuda"; }

Buffer Buffer::host(std::uint64_t size_bytes, bool shared, const std::string& purpose) {
  Buffer buffer;
  if (size_bytes == 0) return buffer;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  if (shared) {
    buffer.fd_.reset(::memfd_create("weightcast", MFD_CLOEXEC));
    // fallocate and not ftruncate: too little memory is an error here and not a signal at first touch.
    if (!buffer.fd_ || ::fallocate(buffer.fd_.get(), 0, 0, static_cast<off_t>(size_bytes)) != 0) throw no_memory(size_bytes, purpose);
    flags = MAP_SHARED;
  }
  void* const address = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, flags, buffer.fd_.get(), 0);
  if (address == MAP_FAILED) throw no_memory(size_bytes, purpose);
  buffer.region_ = {static_cast<std::byte*>(address), size_bytes, MemoryKind::host, -1};
  ::madvise(address, size_bytes, MADV_HUGEPAGE);  // a wish, not a need
  std::memset(address, 0, size_bytes);
  return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept : region_(std::exchange(other.region_, {})), fd_(std::move(other.fd_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(region_, other.region_);
  std::swap(fd_, other.fd_);
  return *this;
}

Buffer::~Buffer() {
  if (region_.data != nullptr) ::munmap(region_.data, region_.size_bytes);
}

ShareHandle Buffer::share() const {
  WEIGHTCAST_EXPECTS(fd_);
  return {::getpid(), fd_.get(), region_.size_bytes};
}

Mapping::Mapping(const ShareHandle& handle) {
  const auto path = fmt::format("/proc/{}/fd/{}", handle.pid, handle.fd);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) fail(ExitCode::unavailable, "cannot open the trainer's memory at {}: {}", path, std::strerror(errno));
  if (static_cast<std::uint64_t>(::lseek(fd.get(), 0, SEEK_END)) != handle.size_bytes) {
    fail(ExitCode::unavailable, "{} is not the trainer's memory (another container's process?)", path);
  }
  // Populated at once, so that the first pull does not pay for page faults.
  void* const address = ::mmap(nullptr, handle.size_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (address == MAP_FAILED) fail(ExitCode::unavailable, "cannot map the trainer's memory: {}", std::strerror(errno));
  ::madvise(address, handle.size_bytes, MADV_HUGEPAGE);
  bytes_ = {static_cast<const std::byte*>(address), handle.size_bytes};
}

Mapping::Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void copy_rows(std::byte* destination, std::uint64_t destination_pitch, const std::byte* source, std::uint64_t source_pitch,
               std::uint64_t row_bytes, std::uint64_t rows) noexcept {
  if (destination_pitch == row_bytes && source_pitch == row_bytes) {
    std::memcpy(destination, source, row_bytes * rows);
    return;
  }
  for (std::uint64_t row = 0; row < rows; ++row) {
    std::memcpy(destination + row * destination_pitch, source + row * source_pitch, row_bytes);
  }
}

ResidentMemory resident_memory() {
  ResidentMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const auto value = [&](std::string_view key) -> std::uint64_t {
      return line.starts_with(key) ? std::stoull(line.substr(key.size())) * 1024 : 0;
    };
    memory.private_bytes += value("RssAnon:");
    memory.shared_bytes += value("RssShmem:");
    memory.peak_bytes += value("VmHWM:");
  }
  return memory;
}

}  // namespace weightcast
