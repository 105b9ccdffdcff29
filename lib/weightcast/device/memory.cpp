#include "weightcast/device/memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/memory_room.hpp"

namespace weightcast {
namespace {

Error no_memory(std::uint64_t size_bytes, const std::string& purpose, const std::string& reason,
                const std::string& more = "use a larger machine") {
  return Error(ExitCode::unavailable, fmt::format("cannot allocate {} bytes for {}: {}", size_bytes, purpose, reason),
               more + ", a larger --tp, or --commit in-place (one slot for each engine rank)");
}

/// The error of a system call that was refused memory.
Error refused_memory(std::uint64_t size_bytes, const std::string& purpose) {
  const auto machine_bytes =
      static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  if (errno == EFBIG && size_bytes <= machine_bytes) {  // more than that it cannot be, limit or not
    return Error(
        ExitCode::io_error,
        fmt::format("cannot allocate {} bytes for {}: memory that processes share counts as a file, and that is "
                    "more than a file may have here",
                    size_bytes, purpose),
        "raise the limit on the size of files (ulimit -f)");
  }
  const std::string reason = std::strerror(errno);
  rlimit space{};
  if (::getrlimit(RLIMIT_AS, &space) != 0 || space.rlim_cur == RLIM_INFINITY)
    return no_memory(size_bytes, purpose, reason);
  return no_memory(size_bytes, purpose,
                   fmt::format("{}; a process may have {} of addresses here", reason, format_size(space.rlim_cur)),
                   "raise that limit (ulimit -v), use a larger machine");
}

Error no_room(std::uint64_t size_bytes, const std::string& purpose, const MemoryRoom& room) {
  if (room.group.empty()) return no_memory(size_bytes, purpose, room.describe());
  return no_memory(
      size_bytes, purpose, room.describe(),
      "give the container or job more memory (docker run --memory, Kubernetes limits.memory, sbatch --mem)");
}

/// mmap at an address that huge pages can be mapped at; MAP_FAILED on failure.
void* map_aligned(std::uint64_t size_bytes, int protection, int flags, int fd) {
  constexpr std::uint64_t huge_page = 2 * 1024 * 1024;
  const auto room = size_bytes + huge_page;
  void* const reserved = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return MAP_FAILED;
  const auto begin = reinterpret_cast<std::uintptr_t>(reserved);
  const auto aligned = (begin + huge_page - 1) / huge_page * huge_page;
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto end = aligned + (size_bytes + page - 1) / page * page;
  if (aligned > begin) ::munmap(reserved, aligned - begin);
  if (begin + room > end) ::munmap(reinterpret_cast<void*>(end), (begin + room - end) / page * page);
  return ::mmap(reinterpret_cast<void*>(aligned), size_bytes, protection, flags | MAP_FIXED, fd, 0);
}

/// How much of the `left` bytes may be touched now: a sixteenth of what there is, so that sixteen ranks can look at the
/// same moment; 0 when there is no room. What a control group allows does not grow: there all of it must fit.
std::uint64_t next_step(std::uint64_t left, const MemoryRoom& room) noexcept {
  constexpr std::uint64_t longest = 256 * mebibyte, shortest = 4 * mebibyte;
  const auto spare = room.spare_bytes();
  if (spare < (room.group.empty() ? std::min(left, shortest) : left)) return 0;
  return std::min({left, longest, std::max(shortest, spare / 16)});
}

/// Zeroes on a few threads: most of it is the kernel giving pages, which one thread alone takes slowly.
void zero(std::byte* memory, std::uint64_t size_bytes) {
  constexpr std::uint64_t piece = 16 * mebibyte;
  constexpr std::size_t most_threads = 4;
  parallel_for((size_bytes + piece - 1) / piece, std::min(most_threads, available_cores()), [&](std::size_t i) {
    const auto offset = i * piece;
    std::memset(memory + offset, 0, std::min(piece, size_bytes - offset));
  });
}

/// Linux grants what it does not have, and kills processes when it is touched: so memory is touched in steps, each with
/// a look at what is left. Machines whose memory grows with use get a few seconds to grow.
void touch(std::byte* memory, std::uint64_t size_bytes, const std::string& purpose) {
  constexpr std::uint64_t trifle = 16 * mebibyte;
  constexpr std::uint64_t absurd = 16;  // times what the machine has, even if it grows
  if (size_bytes <= trifle) {
    std::memset(memory, 0, size_bytes);
    return;
  }
  for (std::uint64_t offset = 0; offset < size_bytes;) {
    const auto left = size_bytes - offset;
    auto room = memory_room();
    for (int naps = 0; naps < 50 && room.group.empty() && next_step(left, room) == 0; ++naps) {
      const timespec nap{0, 100'000'000};
      ::nanosleep(&nap, nullptr);
      room = memory_room();
    }
    const auto step = next_step(left, room);
    if (step == 0 || left / absurd > room.limit_bytes) throw no_room(size_bytes, purpose, room);
    zero(memory + offset, step);
    offset += step;
  }
}

// Rows below this are best left to the C library: past the caches such rows are streamed at two thirds of its speed.
constexpr std::uint64_t short_row_bytes = 1024;

/// One row of a strided copy. Of longer rows the processor's string instruction is twice as fast as what the C library
/// does at such sizes, because it need not read the destination.
void copy_row(std::byte* to, const std::byte* from, std::uint64_t size_bytes) noexcept {
#if defined(__x86_64__)
  if (size_bytes >= short_row_bytes) {
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size_bytes) : : "memory");
    return;
  }
#endif
  std::memcpy(to, from, size_bytes);
}

void stream_row(std::byte* to, const std::byte* from, std::uint64_t size_bytes) noexcept {
#if defined(__SSE2__)
  if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
    constexpr std::uint64_t step = 4 * sizeof(__m128i);
    for (; size_bytes >= step; size_bytes -= step, to += step, from += step) {
      const auto* in = reinterpret_cast<const __m128i*>(from);
      auto* out = reinterpret_cast<__m128i*>(to);
      const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
      const __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
      _mm_stream_si128(out, a);
      _mm_stream_si128(out + 1, b);
      _mm_stream_si128(out + 2, c);
      _mm_stream_si128(out + 3, d);
    }
  }
#endif
  std::memcpy(to, from, size_bytes);
}

}  // namespace

std::string_view name(MemoryKind kind) noexcept {
  return kind == MemoryKind::host ? "host" : "cuda";
}

Buffer Buffer::host(std::uint64_t size_bytes, bool shared, const std::string& purpose) {
  if (size_bytes == 0) return {};
  UniqueFd fd;
  if (shared) {
    fd.reset(::memfd_create("weightcast", MFD_CLOEXEC));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) throw refused_memory(size_bytes, purpose);
  }
  const int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const address = map_aligned(size_bytes, PROT_READ | PROT_WRITE, flags, fd.get());
  if (address == MAP_FAILED) throw refused_memory(size_bytes, purpose);
  Buffer buffer({static_cast<std::byte*>(address), size_bytes, MemoryKind::host, -1}, std::move(fd));
  ::madvise(address, size_bytes, MADV_HUGEPAGE);  // a wish, not a need
  touch(buffer.memory_.get(), size_bytes, purpose);
  return buffer;
}

Buffer Buffer::allocate(Placement placement, std::uint64_t size_bytes, bool shared, const std::string& purpose) {
  if (placement.kind == MemoryKind::host) return host(size_bytes, shared, purpose);
  if (size_bytes == 0) return {};
  return Buffer({gpu::allocate(placement.gpu, size_bytes, purpose), size_bytes, MemoryKind::cuda, placement.gpu});
}

void Buffer::Free::operator()(std::byte* memory) const noexcept {
  if (region.kind == MemoryKind::cuda) {
    gpu::release(region.gpu, memory);
  } else {
    ::munmap(memory, region.size_bytes);
  }
}

void read_region(const Region& region, std::uint64_t offset, std::span<std::byte> destination) {
  if (region.kind == MemoryKind::cuda)
    return gpu::download(region.gpu, destination.data(), region.data + offset, destination.size());
  std::memcpy(destination.data(), region.data + offset, destination.size());
}

void write_region(const Region& region, std::uint64_t offset, std::span<const std::byte> source) {
  if (region.kind == MemoryKind::cuda)
    return gpu::upload(region.gpu, region.data + offset, source.data(), source.size());
  std::memcpy(region.data + offset, source.data(), source.size());
}

ShareHandle Buffer::share() const {
  const auto all = region();
  ShareHandle handle{.kind = all.kind, .pid = ::getpid(), .fd = fd_.get(), .ipc = {}, .size_bytes = all.size_bytes};
  if (all.kind == MemoryKind::cuda) {
    handle.ipc = gpu::export_memory(all.gpu, all.data);
  } else {
    WEIGHTCAST_EXPECTS(fd_);
  }
  return handle;
}

Mapping::Mapping(const ShareHandle& handle, int gpu) {
  const Close close{handle.kind, gpu, handle.size_bytes};
  if (handle.kind == MemoryKind::cuda) {
    memory_ = {gpu::import_memory(gpu, handle.ipc), close};
    return;
  }
  const auto path = fmt::format("/proc/{}/fd/{}", handle.pid, handle.fd);
  const bool for_gpu = gpu >= 0;  // whose driver takes only what can be written to
  const UniqueFd fd(::open(path.c_str(), (for_gpu ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (!fd) fail(ExitCode::unavailable, "cannot open the trainer's memory at {}: {}", path, std::strerror(errno));
  if (static_cast<std::uint64_t>(::lseek(fd.get(), 0, SEEK_END)) != handle.size_bytes) {
    fail(ExitCode::unavailable, "{} is not the trainer's memory (another container's process?)", path);
  }
  const int protection = for_gpu ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const address = map_aligned(handle.size_bytes, protection, MAP_SHARED, fd.get());
  if (address == MAP_FAILED) fail(ExitCode::unavailable, "cannot map the trainer's memory: {}", std::strerror(errno));
  ::madvise(address, handle.size_bytes, MADV_HUGEPAGE);
  // So that the first pull does not pay for page faults; older kernels do not know it, and then it does.
  ::madvise(address, handle.size_bytes, MADV_POPULATE_READ);
  memory_ = {static_cast<const std::byte*>(address), {close.kind, -1, close.size_bytes}};
  if (!for_gpu) return;
  gpu::register_host(gpu, writable(), handle.size_bytes);
  memory_.get_deleter().gpu = gpu;
}

void Mapping::Close::operator()(const std::byte* memory) const noexcept {
  auto* const address = const_cast<std::byte*>(memory);
  if (kind == MemoryKind::cuda) {
    gpu::close_import(gpu, address);
  } else {
    if (gpu >= 0) gpu::release_host(address);
    ::munmap(address, size_bytes);
  }
}

HostView::HostView(const Region& region) : bytes_(region.bytes()) {
  if (region.kind == MemoryKind::host) return;
  copy_ = Buffer::host(region.size_bytes, false, "a copy of device memory");
  read_region(region, 0, copy_.region().bytes());
  bytes_ = copy_.region().bytes();
}

Staging::Staging(const Region& region, std::uint64_t size_bytes)
    : memory_(region.kind == MemoryKind::cuda ? gpu::allocate_pinned(region.gpu, std::max<std::uint64_t>(size_bytes, 1))
                                              : new std::byte[size_bytes],
              Release{region.kind == MemoryKind::cuda}) {}

void Staging::Release::operator()(std::byte* memory) const noexcept {
  if (pinned) return gpu::release_pinned(memory);
  delete[] memory;
}

void copy_rows(std::byte* destination, std::uint64_t destination_pitch, const std::byte* source,
               std::uint64_t source_pitch, std::uint64_t row_bytes, std::uint64_t rows) noexcept {
  if (destination_pitch == row_bytes && source_pitch == row_bytes) {
    std::memcpy(destination, source, row_bytes * rows);
    return;
  }
  for (std::uint64_t row = 0; row < rows; ++row) {
    copy_row(destination + row * destination_pitch, source + row * source_pitch, row_bytes);
  }
}

void stream_rows(std::byte* destination, std::uint64_t destination_pitch, const std::byte* source,
                 std::uint64_t source_pitch, std::uint64_t row_bytes, std::uint64_t rows) noexcept {
  if (destination_pitch == row_bytes && source_pitch == row_bytes) {
    row_bytes *= rows;
    rows = 1;
  }
  if (row_bytes < short_row_bytes)
    return copy_rows(destination, destination_pitch, source, source_pitch, row_bytes, rows);
  for (std::uint64_t row = 0; row < rows; ++row) {
    stream_row(destination + row * destination_pitch, source + row * source_pitch, row_bytes);
  }
#if defined(__SSE2__)
  _mm_sfence();  // or another rank might be told before the bytes are there
#endif
}

}  // namespace weightcast
