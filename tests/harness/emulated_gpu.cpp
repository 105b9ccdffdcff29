// GPUs that are not there: weightcast/device/gpu.hpp on host memory, linked into a test in place of the build's own
// backend, so that all that is said to a GPU is tested on machines without one. Stricter than the hardware:
// - "Device" memory cannot be touched by the host: the address that callers get is mapped without access.
// - What is queued happens only when somebody waits for it, so a missing wait reads old bytes.
// - Every range is looked up: outside of an allocation or a mapping is the end of the test.
// WEIGHTCAST_EMULATED_GPUS says how many there are (2).
#include "harness/emulated_gpu.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "weightcast/core/error.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast::gpu {

using emulated::at;
using emulated::stop;

void emulated::stop(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

namespace {

std::recursive_mutex mutex;  // of all below: what is queued runs in whichever thread waits for it
std::atomic<std::uint64_t> allocated{0};

/// Memory as callers name it, and where it can be read and written.
struct Block {
  int fd = -1;
  std::byte* data = nullptr;
  std::uint64_t size_bytes = 0;
};
std::map<const std::byte*, Block> blocks;  // by the address that callers see

const std::byte* map_block(int fd, std::uint64_t size_bytes) {
  void* const hidden = ::mmap(nullptr, size_bytes, PROT_NONE, MAP_SHARED, fd, 0);
  void* const data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (hidden == MAP_FAILED || data == MAP_FAILED) stop("cannot map memory");
  const std::scoped_lock lock(mutex);
  const auto* const address = static_cast<const std::byte*>(hidden);
  blocks[address] = {fd, static_cast<std::byte*>(data), size_bytes};
  return address;
}

void unmap_block(const std::byte* address) {
  const std::scoped_lock lock(mutex);
  const auto block = blocks.find(address);
  if (block == blocks.end()) stop("release of what was not allocated");
  ::munmap(const_cast<std::byte*>(address), block->second.size_bytes);
  ::munmap(block->second.data, block->second.size_bytes);
  ::close(block->second.fd);
  blocks.erase(block);
}

std::map<const std::byte*, Block>::const_iterator block_of(const std::byte* address, std::uint64_t size_bytes) {
  auto block = blocks.upper_bound(address);
  if (block == blocks.begin()) stop("no device memory there");
  --block;
  const auto offset = static_cast<std::uint64_t>(address - block->first);
  if (offset > block->second.size_bytes || size_bytes > block->second.size_bytes - offset)
    stop("a range that leaves its device memory");
  return block;
}

/// What a stream has been given and nobody has waited for.
struct Queue {
  std::deque<std::function<void()>> work;
  std::uint64_t queued = 0, done = 0;

  void add(std::function<void()> what) {
    const std::scoped_lock lock(mutex);
    work.push_back(std::move(what));
    ++queued;
  }
  void run_until(std::uint64_t mark) {
    const std::scoped_lock lock(mutex);
    while (done < mark) {
      const auto what = std::move(work.front());
      work.pop_front();
      ++done;
      what();
    }
  }
};
using Handle = std::shared_ptr<Queue>;

Queue& queue_of(const Stream& stream) {
  if (stream.handle() == nullptr) stop("a stream that was not made");
  return **static_cast<Handle*>(stream.handle());
}

struct Mark {
  Handle queue;
  std::uint64_t position = 0;
  bool asked = false;
};

void expect_gpu(int gpu) {
  if (gpu < 0 || gpu >= count()) throw Error(ExitCode::unavailable, fmt::format("there is no GPU {}", gpu));
}

}  // namespace

std::byte* emulated::at(const std::byte* address, std::uint64_t size_bytes) {
  const std::scoped_lock lock(mutex);
  const auto block = block_of(address, size_bytes);
  return block->second.data + (address - block->first);
}

void emulated::queue(const Stream& stream, std::function<void()> work) {
  queue_of(stream).add(std::move(work));
}

std::string cuda_version() {
  return "emulated";
}
std::string nccl_version() {
  return "not built in";
}
int count() noexcept {
  const char* const text = std::getenv("WEIGHTCAST_EMULATED_GPUS");
  return text == nullptr ? 2 : std::atoi(text);
}
std::string why_none() {
  return "WEIGHTCAST_EMULATED_GPUS is 0";
}
Properties properties(int gpu) {
  expect_gpu(gpu);
  return {"emulated", fmt::format("0000:{:02x}:00.0", gpu), 1ull << 36, 1ull << 36};
}

std::byte* allocate(int gpu, std::uint64_t size_bytes, const std::string& purpose) {
  expect_gpu(gpu);
  const int fd = ::memfd_create("emulated", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(size_bytes)) != 0)
    throw Error(ExitCode::unavailable, "no memory for " + purpose);
  ++allocated;
  return const_cast<std::byte*>(map_block(fd, size_bytes));
}
void release(int, std::byte* memory) noexcept {
  unmap_block(memory);
}

struct Exported {
  int pid, fd;
  std::uint64_t size_bytes;
};
IpcHandle export_memory(int, const std::byte* memory) {
  const std::scoped_lock lock(mutex);
  const auto block = block_of(memory, 0);
  const Exported exported{::getpid(), block->second.fd, block->second.size_bytes};
  if (memory != block->first) stop("a part of an allocation cannot be exported");
  IpcHandle handle{};
  std::memcpy(handle.data(), &exported, sizeof(exported));
  return handle;
}
std::byte* import_memory(int gpu, const IpcHandle& handle) {
  expect_gpu(gpu);
  Exported exported{};
  std::memcpy(&exported, handle.data(), sizeof(exported));
  const int fd = ::open(fmt::format("/proc/{}/fd/{}", exported.pid, exported.fd).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) throw Error(ExitCode::unavailable, "cannot map another process's device memory");
  return const_cast<std::byte*>(map_block(fd, exported.size_bytes));
}
void close_import(int, std::byte* memory) noexcept {
  unmap_block(memory);
}
void register_host(int gpu, std::byte* memory, std::uint64_t size_bytes) {
  expect_gpu(gpu);
  const std::scoped_lock lock(mutex);
  blocks[memory] = {-1, memory, size_bytes};
}
void release_host(std::byte* memory) noexcept {
  const std::scoped_lock lock(mutex);
  if (blocks.erase(memory) == 0) stop("release of what was not registered");
}

// As blocking copies do with streams of one's own: they wait for none of them.
void upload(int, std::byte* device, const std::byte* host, std::uint64_t size_bytes) {
  const std::scoped_lock lock(mutex);
  std::memcpy(at(device, size_bytes), host, size_bytes);
}
void download(int, std::byte* host, const std::byte* device, std::uint64_t size_bytes) {
  const std::scoped_lock lock(mutex);
  std::memcpy(host, at(device, size_bytes), size_bytes);
}

void CloseStream::operator()(void* stream) const noexcept {
  auto* const handle = static_cast<Handle*>(stream);
  (*handle)->run_until((*handle)->queued);
  delete handle;
}
void CloseEvent::operator()(void* event) const noexcept {
  delete static_cast<Mark*>(event);
}
Stream::Stream(int gpu) {
  expect_gpu(gpu);
  stream_ = {new Handle(std::make_shared<Queue>()), {gpu}};
}
void Stream::after(const Stream& other) {
  const auto before = *static_cast<Handle*>(other.handle());
  queue_of(*this).add([before, mark = before->queued] { before->run_until(mark); });
}
void Stream::synchronize(Deadline, const char*, FunctionRef<void()> look) const {
  if (look) look();
  queue_of(*this).run_until(queue_of(*this).queued);
}

Event::Event(int gpu) : event_(new Mark, {gpu}) {
  expect_gpu(gpu);
}
void Event::record(const Stream& stream) {
  const auto& queue = *static_cast<Handle*>(stream.handle());
  *static_cast<Mark*>(event_.get()) = {queue, queue->queued, false};
}
bool Event::done() const {
  auto& mark = *static_cast<Mark*>(event_.get());
  if (mark.queue == nullptr) return true;
  if (!std::exchange(mark.asked, true)) return false;  // nobody may count on the first answer
  mark.queue->run_until(mark.position);
  return true;
}

void copy_strided(const CopyTask* tasks, std::uint64_t count, const std::byte* source, std::byte* destination,
                  const Stream& stream) {
  queue_of(stream).add([=] {
    for (std::uint64_t t = 0; t < count; ++t) {
      CopyTask task;
      std::memcpy(&task, at(reinterpret_cast<const std::byte*>(tasks + t), sizeof(task)), sizeof(task));
      for (std::uint64_t row = 0; row < task.rows; ++row) {
        std::memcpy(at(destination + task.destination + row * task.destination_pitch, task.row_bytes),
                    at(source + task.source + row * task.source_pitch, task.row_bytes), task.row_bytes);
      }
    }
  });
}

void copy_batch(void* const* destinations, const void* const* sources, const std::size_t* sizes, std::size_t count,
                const Stream& stream) {
  queue_of(stream).add([=] {
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(at(static_cast<const std::byte*>(destinations[i]), sizes[i]),
                  at(static_cast<const std::byte*>(sources[i]), sizes[i]), sizes[i]);
    }
  });
}

namespace {

/// Each element by itself, looked up, and held against its alignment.
template <typename Visit>
void visit_elements(const StridedElements& elements, const std::byte* matrix, const Visit& visit) {
  for (std::uint64_t i = 0; i < elements.count; ++i) {
    const auto row = static_cast<std::int64_t>((elements.first + i) / elements.columns),
               column = static_cast<std::int64_t>((elements.first + i) % elements.columns);
    const auto* const address = matrix + row * elements.row_stride + column * elements.column_stride;
    if (reinterpret_cast<std::uintptr_t>(address) % elements.element_bytes != 0) stop("an element that is not aligned");
    visit(i, at(address, elements.element_bytes));
  }
}

}  // namespace

void gather(const StridedElements& elements, std::optional<Rounding> rounding, std::byte* destination,
            const std::byte* matrix, const Stream& stream) {
  queue_of(stream).add([=] {
    auto* const to = at(destination, elements.count * (rounding ? 2 : elements.element_bytes));
    visit_elements(elements, matrix, [&](std::uint64_t i, const std::byte* element) {
      if (rounding) {
        weightcast::narrow(rounding->to, to + 2 * i, element, 1, rounding->from);
      } else {
        std::memcpy(to + i * elements.element_bytes, element, elements.element_bytes);
      }
    });
  });
}
void quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination, const Stream& stream) {
  if (source.rows == 0 || source.columns == 0) return;
  queue_of(stream).add([=] {
    const auto span = [](std::uint64_t rows, std::uint64_t pitch, std::uint64_t columns, std::uint64_t width) {
      return ((rows - 1) * pitch + columns) * width;
    };
    const auto width = width_bytes(source.type), scale_width = std::uint64_t{sizeof(float)};
    auto from = source;
    auto to = destination;
    from.data = at(source.data, span(source.rows, source.pitch, source.columns, width));
    to.data = at(destination.data, span(source.rows, destination.pitch, source.columns, 1));
    to.scales = reinterpret_cast<float*>(at(reinterpret_cast<std::byte*>(destination.scales),
                                            span(scale_rows(kind, source.rows), destination.scale_pitch,
                                                 scale_columns(kind, source.columns), scale_width)));
    weightcast::quantize(kind, from, to);
  });
}
void scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source, const Stream& stream) {
  queue_of(stream).add([=] {
    const auto* const from = at(source, elements.count * elements.element_bytes);
    visit_elements(elements, matrix, [&](std::uint64_t i, std::byte* element) {
      std::memcpy(element, from + i * elements.element_bytes, elements.element_bytes);
    });
  });
}

namespace {

/// Each row by itself, looked up: its number and its bytes.
template <typename Visit>
void visit_rows(const ParameterRows& rows, const std::byte* data, const Visit& visit) {
  for (std::uint64_t row = 0; row < rows.rows; ++row)
    visit(row, std::span(at(data + row * rows.pitch, rows.row_bytes), rows.row_bytes));
}

/// `expect(row)` gives the bytes that a row should have.
template <typename Expect>
void queue_comparison(const ParameterRows& rows, const std::byte* data, std::uint64_t first, std::uint64_t* difference,
                      const Stream& stream, const Expect& expect) {
  queue_of(stream).add([=] {
    auto* const result = reinterpret_cast<std::uint64_t*>(at(reinterpret_cast<std::byte*>(difference), 8));
    visit_rows(rows, data, [&](std::uint64_t row, std::span<const std::byte> held) {
      const std::vector<std::byte> expected = expect(row);
      const auto differs = std::mismatch(held.begin(), held.end(), expected.begin()).first;
      const auto position = first + row * rows.row_bytes + static_cast<std::uint64_t>(differs - held.begin());
      if (differs != held.end()) *result = std::max(*result, ~position);
    });
  });
}

}  // namespace

void generate(const WordGenerator& words, const ParameterRows& rows, std::byte* data, const Stream& stream) {
  queue_of(stream).add([=] {
    visit_rows(rows, data, [&](std::uint64_t row, std::span<std::byte> bytes) {
      weightcast::generate(words, rows.offset + row * rows.parameter_pitch, bytes);
    });
  });
}
void compare(const WordGenerator& words, const ParameterRows& rows, const std::byte* data, std::uint64_t first,
             std::uint64_t* difference, const Stream& stream) {
  queue_comparison(rows, data, first, difference, stream, [=](std::uint64_t row) {
    std::vector<std::byte> expected(rows.row_bytes);
    weightcast::generate(words, rows.offset + row * rows.parameter_pitch, expected);
    return expected;
  });
}
void compare(const std::byte* reference, const ParameterRows& rows, const std::byte* data, std::uint64_t first,
             std::uint64_t* difference, const Stream& stream) {
  queue_comparison(rows, data, first, difference, stream, [=](std::uint64_t row) {
    const auto* const bytes = at(reference + row * rows.parameter_pitch, rows.row_bytes);
    return std::vector(bytes, bytes + rows.row_bytes);
  });
}

namespace {

/// With a source: copied, or rounded, first.
void queue_digests(const DigestTask* tasks, std::uint64_t count, const CopySource& source, const std::byte* base,
                   std::uint64_t* results, const Stream& stream) {
  queue_of(stream).add([=] {
    for (std::uint64_t t = 0; t < count; ++t) {
      DigestTask task;
      std::memcpy(&task, at(reinterpret_cast<const std::byte*>(tasks + t), sizeof(task)), sizeof(task));
      auto* const sums =
          reinterpret_cast<std::uint64_t*>(at(reinterpret_cast<const std::byte*>(results + 2ull * task.result), 16));
      for (std::uint64_t row = 0; row < task.rows; ++row) {
        auto* const data = at(base + task.data + row * task.pitch, task.row_bytes);
        if (source.data != nullptr) {
          const std::vector before(data, data + task.row_bytes);
          const auto offset = task.source + row * task.source_pitch - source.offset;
          const std::uint64_t width = source.rounding ? 2 : 1;
          const auto* const from = at(source.data + width * offset, width * task.row_bytes);
          if (source.rounding) {
            if (reinterpret_cast<std::uintptr_t>(from) % 4 != 0) stop("a float that is not aligned");
            weightcast::narrow(*source.rounding, data, from, task.row_bytes / 2);
          } else {
            std::memcpy(data, from, task.row_bytes);
          }
          if (source.marks != nullptr) {
            const auto position = task.data + row * task.pitch;
            if ((reinterpret_cast<std::uintptr_t>(base) | position | task.row_bytes) % 2 != 0)
              stop("a unit that is not aligned");
            emulated::mark_units(before, {data, task.row_bytes}, position / 2, source.marks);
          }
        }
        const auto digest = digest_bytes({data, task.row_bytes}, task.offset + row * task.parameter_pitch);
        sums[0] += digest.first;
        sums[1] += digest.second;
      }
    }
  });
}

}  // namespace

void digest(const DigestTask* tasks, std::uint64_t count, const std::byte* base, std::uint64_t* results, Share,
            const Stream& stream) {
  queue_digests(tasks, count, {}, base, results, stream);
}
void copy_and_digest(const DigestTask* tasks, std::uint64_t count, const CopySource& source, std::byte* base,
                     std::uint64_t* results, Share, const Stream& stream) {
  queue_digests(tasks, count, source, base, results, stream);
}

void zero(std::byte* device, std::uint64_t size_bytes, const Stream& stream) {
  queue_of(stream).add([=] { std::memset(at(device, size_bytes), 0, size_bytes); });
}
void fetch(std::byte* pinned, const std::byte* device, std::uint64_t size_bytes, const Stream& stream) {
  queue_of(stream).add([=] { std::memcpy(pinned, at(device, size_bytes), size_bytes); });
}
std::byte* allocate_pinned(int gpu, std::uint64_t size_bytes) {
  expect_gpu(gpu);
  ++allocated;
  return new std::byte[size_bytes];
}
void release_pinned(std::byte* memory) noexcept {
  delete[] memory;
}
std::uint64_t allocations() noexcept {
  return allocated;
}

}  // namespace weightcast::gpu
