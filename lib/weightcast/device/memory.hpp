#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "weightcast/core/file.hpp"
#include "weightcast/device/gpu.hpp"

/// Memory that weights live in: who owns it, how it is seen, and how another process on the same host may see it.
namespace weightcast {

enum class MemoryKind : std::uint8_t { host, cuda };
std::string_view name(MemoryKind kind) noexcept;

/// Where weights are kept: in host memory, or on a GPU (CUDA ordinal).
struct Placement {
  MemoryKind kind = MemoryKind::host;
  int gpu = -1;
  Placement() = default;
  Placement(MemoryKind memory, int ordinal = -1) : kind(memory), gpu(ordinal) {}  // NOLINT: a kind alone is the host
  bool operator==(const Placement&) const = default;
};

/// A view of memory. `data` may be dereferenced on the host only when `kind` is host.
struct Region {
  std::byte* data = nullptr;
  std::uint64_t size_bytes = 0;
  MemoryKind kind = MemoryKind::host;
  int gpu = -1;  ///< CUDA ordinal; -1 on the host

  std::span<std::byte> bytes() const noexcept { return {data, size_bytes}; }
};

/// Blocking copies between host memory and a range of a region of either kind.
void read_region(const Region& region, std::uint64_t offset, std::span<std::byte> destination);
void write_region(const Region& region, std::uint64_t offset, std::span<const std::byte> source);

/// What one process tells another so that it can map a buffer: plain data, sent as bytes. Valid while the buffer lives.
struct ShareHandle {
  MemoryKind kind = MemoryKind::host;
  std::int64_t pid = -1;  ///< host: of the process that has it as `fd`
  std::int32_t fd = -1;
  gpu::IpcHandle ipc{};  ///< cuda
  std::uint64_t size_bytes = 0;
};

/// Owner of one allocation, zero-filled and touched, so that no later write pays for first touch.
class Buffer {
 public:
  Buffer() = default;
  /// Host memory in huge pages where the system grants them. `shared`: other processes of this user on this host can
  /// map it (share()). Error(unavailable) naming `purpose` and the size when less is available.
  static Buffer host(std::uint64_t size_bytes, bool shared, const std::string& purpose);
  /// Memory of that kind; device memory can always be shared.
  static Buffer allocate(Placement placement, std::uint64_t size_bytes, bool shared, const std::string& purpose);

  Region region() const noexcept { return memory_ ? memory_.get_deleter().region : Region(); }
  /// Error(internal) when the buffer was not made to be shared.
  ShareHandle share() const;

 private:
  struct Free {
    Region region;
    void operator()(std::byte* memory) const noexcept;
  };
  explicit Buffer(const Region& region, UniqueFd fd = {}) : memory_(region.data, {region}), fd_(std::move(fd)) {}

  std::unique_ptr<std::byte, Free> memory_;
  UniqueFd fd_;
};

/// Another process's shared buffer, mapped until the end of the scope: for reading, and for a GPU for writing, too. The
/// exporter must outlive it.
class Mapping {
 public:
  Mapping() = default;
  /// For the host, or for `gpu`: then host memory is registered with it. Error(unavailable) saying why when it cannot
  /// be mapped (another host, container or user; no peer access).
  explicit Mapping(const ShareHandle& handle, int gpu = -1);

  /// Device memory is only for the GPU that mapped it.
  std::span<const std::byte> bytes() const noexcept {
    return {memory_.get(), memory_ ? memory_.get_deleter().size_bytes : 0};
  }
  /// For copies that its GPU makes.
  std::byte* writable() const noexcept { return const_cast<std::byte*>(memory_.get()); }

 private:
  struct Close {
    MemoryKind kind;
    int gpu;
    std::uint64_t size_bytes;
    void operator()(const std::byte* memory) const noexcept;
  };
  std::unique_ptr<const std::byte, Close> memory_;
};

/// A region as the host can read it: itself, or a copy of device memory.
class HostView {
 public:
  explicit HostView(const Region& region);
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  Buffer copy_;
  std::span<const std::byte> bytes_;
};

/// Host memory for what is on its way to or from a region: pinned where that is on a GPU, whose driver else copies once
/// more.
class Staging {
 public:
  Staging() = default;
  Staging(const Region& region, std::uint64_t size_bytes);
  std::span<std::byte> first(std::uint64_t size_bytes) const noexcept { return {memory_.get(), size_bytes}; }

 private:
  struct Release {
    bool pinned;
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte, Release> memory_;
};

/// Copies `rows` runs of `row_bytes` on the host; one memcpy where both sides are contiguous.
void copy_rows(std::byte* destination, std::uint64_t destination_pitch, const std::byte* source,
               std::uint64_t source_pitch, std::uint64_t row_bytes, std::uint64_t rows) noexcept;

/// The same, past the caches where rows are long: for bytes that nobody will look at soon. 30 % faster on large ranges.
void stream_rows(std::byte* destination, std::uint64_t destination_pitch, const std::byte* source,
                 std::uint64_t source_pitch, std::uint64_t row_bytes, std::uint64_t rows) noexcept;

}  // namespace weightcast
