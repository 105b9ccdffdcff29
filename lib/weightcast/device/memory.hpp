#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "weightcast/core/file.hpp"

/// Memory that weights live in: who owns it, how it is seen, and how another process on the same host may see it.
namespace weightcast {

enum class MemoryKind : std::uint8_t { host, cuda };
std::string_view name(MemoryKind kind) noexcept;

/// A view of memory. `data` may be dereferenced on the host only when `kind` is host.
struct Region {
  std::byte* data = nullptr;
  std::uint64_t size_bytes = 0;
  MemoryKind kind = MemoryKind::host;
  int gpu = -1;  ///< CUDA ordinal; -1 on the host

  std::span<std::byte> bytes() const noexcept { return {data, size_bytes}; }
};

/// What one process tells another so that it can map a buffer: plain data, sent as bytes. Valid while the buffer lives.
struct ShareHandle {
  std::int64_t pid = -1;
  std::int32_t fd = -1;
  std::uint64_t size_bytes = 0;
};

/// Owner of one allocation, zero-filled and touched, so that no later write pays for first touch.
class Buffer {
 public:
  Buffer() = default;
  /// Host memory in huge pages where the system grants them. `shared`: other processes of this user on this host can map
  /// it (share()). Error(unavailable) naming `purpose` and the size when there is not enough.
  static Buffer host(std::uint64_t size_bytes, bool shared, const std::string& purpose);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  Region region() const noexcept { return region_; }
  /// Error(internal) when the buffer was not made to be shared.
  ShareHandle share() const;

 private:
  Region region_;
  UniqueFd fd_;
};

/// Another process's shared buffer, mapped for reading until the end of the scope. The exporter must outlive it.
class Mapping {
 public:
  Mapping() = default;
  /// Error(unavailable) saying why when it cannot be mapped (another host, container or user).
  explicit Mapping(const ShareHandle& handle);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// Copies `rows` runs of `row_bytes` on the host; one memcpy where both sides are contiguous.
void copy_rows(std::byte* destination, std::uint64_t destination_pitch, const std::byte* source, std::uint64_t source_pitch,
               std::uint64_t row_bytes, std::uint64_t rows) noexcept;

/// Resident memory of this process in bytes. Pages of another process's shared buffer count as shared once they are read.
struct ResidentMemory {
  std::uint64_t private_bytes = 0, shared_bytes = 0;
  std::uint64_t peak_bytes = 0;  ///< highest sum so far
};
ResidentMemory resident_memory();

}  // namespace weightcast
