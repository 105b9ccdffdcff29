#include "weightcast/device/gpu.hpp"

#include <cuda_runtime.h>
#include <nccl.h>
#include <sched.h>

#include <atomic>
#include <bit>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/device/backend_cuda/calls.hpp"
#include "weightcast/device/backend_cuda/kernels.hpp"

namespace weightcast::gpu {
namespace {

std::atomic<std::uint64_t> allocated{0};

std::unique_ptr<void, CloseEvent> make_event(int gpu) {
  use(gpu);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return {event, {gpu}};
}

std::string version(int number, int major, int minor) {
  return fmt::format("{}.{}", number / major, number % major / minor);
}

}  // namespace

std::string cuda_version() {
  int number = 0;
  cudaRuntimeGetVersion(&number);
  return version(number, 1000, 10);
}

std::string nccl_version() {
  int number = 0;
  ncclGetVersion(&number);
  return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
}

int count() noexcept {
  int number = 0;
  if (cudaGetDeviceCount(&number) == cudaSuccess) return number;
  cudaGetLastError();
  return 0;
}

std::string why_none() {
  int number = 0;
  const auto status = cudaGetDeviceCount(&number);
  cudaGetLastError();
  return status == cudaSuccess && number > 0 ? std::string()
                                             : fmt::format("no usable GPU: {}", cudaGetErrorString(status));
}

Properties properties(int gpu) {
  if (gpu < 0 || gpu >= count()) {
    throw Error(ExitCode::config, fmt::format("there is no GPU {}: this host has {}", gpu, count()),
                "choose others with --gpus");
  }
  use(gpu);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, gpu), "cudaGetDeviceProperties");
  char bus[32] = {};
  check(cudaDeviceGetPCIBusId(bus, sizeof bus, gpu), "cudaDeviceGetPCIBusId");
  std::size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return {properties.name, bus, free_bytes, total_bytes};
}

std::byte* allocate(int gpu, std::uint64_t size_bytes, const std::string& purpose) {
  use(gpu);
  ++allocated;
  void* memory = nullptr;
  const auto status = cudaMalloc(&memory, size_bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    throw Error(ExitCode::unavailable,
                fmt::format("GPU {} has {} free, but {} needs {} ({} bytes)", gpu, format_size(free_bytes), purpose,
                            format_size(size_bytes), size_bytes),
                "use a larger --tp, other --gpus, or --commit in-place (one slot for each engine rank)");
  }
  check(status, "cudaMalloc");
  // Waits for the zeros alone, and not for whatever else this process has given the GPU.
  check(cudaMemsetAsync(memory, 0, size_bytes, cudaStreamPerThread), "cudaMemsetAsync");
  check(cudaStreamSynchronize(cudaStreamPerThread), "cudaStreamSynchronize");
  return static_cast<std::byte*>(memory);
}

void release(int gpu, std::byte* memory) noexcept {
  // At the end of the process the runtime may be gone already: nothing to give back then.
  if (cudaSetDevice(gpu) == cudaSuccess) cudaFree(memory);
  cudaGetLastError();
}

IpcHandle export_memory(int gpu, const std::byte* memory) {
  use(gpu);
  cudaIpcMemHandle_t exported;
  check(cudaIpcGetMemHandle(&exported, const_cast<std::byte*>(memory)), "cudaIpcGetMemHandle");
  return std::bit_cast<IpcHandle>(exported);
}

std::byte* import_memory(int gpu, const IpcHandle& handle) {
  use(gpu);
  void* memory = nullptr;
  check(cudaIpcOpenMemHandle(&memory, std::bit_cast<cudaIpcMemHandle_t>(handle), cudaIpcMemLazyEnablePeerAccess),
        "cudaIpcOpenMemHandle");
  return static_cast<std::byte*>(memory);
}

void close_import(int gpu, std::byte* memory) noexcept {
  if (cudaSetDevice(gpu) == cudaSuccess) cudaIpcCloseMemHandle(memory);
  cudaGetLastError();
}

void upload(int gpu, std::byte* device, const std::byte* host, std::uint64_t size_bytes) {
  use(gpu);
  // Whoever reads it next is another process or a stream that does not wait for this one: so all of it must be there.
  check(cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, cudaStreamPerThread),
        "cudaMemcpyAsync to the GPU");
  check(cudaStreamSynchronize(cudaStreamPerThread), "cudaStreamSynchronize");
}

void download(int gpu, std::byte* host, const std::byte* device, std::uint64_t size_bytes) {
  use(gpu);
  check(cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, cudaStreamPerThread),
        "cudaMemcpyAsync from the GPU");
  check(cudaStreamSynchronize(cudaStreamPerThread), "cudaStreamSynchronize");
}

void CloseStream::operator()(void* stream) const noexcept {
  cudaSetDevice(gpu);
  cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  cudaGetLastError();
}

void CloseEvent::operator()(void* event) const noexcept {
  cudaSetDevice(gpu);
  cudaEventDestroy(static_cast<cudaEvent_t>(event));
  cudaGetLastError();
}

Stream::Stream(int gpu) : event_(make_event(gpu)) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_ = {stream, {gpu}};
}

void Stream::after(const Stream& other) {
  auto* const event = static_cast<cudaEvent_t>(other.event_.get());
  use(other.gpu());
  check(cudaEventRecord(event, cuda(other)), "cudaEventRecord");
  use(gpu());
  check(cudaStreamWaitEvent(cuda(*this), event, 0), "cudaStreamWaitEvent");
}

void Stream::synchronize(Deadline deadline, const char* what, FunctionRef<void()> look) const {
  use(gpu());
  while (true) {
    const auto status = cudaStreamQuery(cuda(*this));
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) check(status, what);
    if (deadline.passed()) fail(ExitCode::deadline, "{} did not finish in time", what);
    if (look) {
      look();
      use(gpu());  // whatever it has done
    }
    ::sched_yield();
  }
}

Event::Event(int gpu) : event_(make_event(gpu)) {}

void Event::record(const Stream& stream) {
  use(event_.get_deleter().gpu);
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_.get()), cuda(stream)), "cudaEventRecord");
}

bool Event::done() const {
  const auto status = cudaEventQuery(static_cast<cudaEvent_t>(event_.get()));
  if (status != cudaErrorNotReady) check(status, "cudaEventQuery");
  return status == cudaSuccess;
}

void copy_batch(void* const* destinations, const void* const* sources, const std::size_t* sizes, std::size_t count,
                const Stream& stream) {
  if (count == 0) return;
  use(stream.gpu());
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
  check(cudaMemcpyBatchAsync(destinations, sources, sizes, count, &attributes, &first, 1, cuda(stream)),
        "cudaMemcpyBatchAsync");
}

void zero(std::byte* device, std::uint64_t size_bytes, const Stream& stream) {
  use(stream.gpu());
  check(cudaMemsetAsync(device, 0, size_bytes, cuda(stream)), "cudaMemsetAsync");
}

void register_host(int gpu, std::byte* memory, std::uint64_t size_bytes) {
  use(gpu);
  check(cudaHostRegister(memory, size_bytes, cudaHostRegisterMapped), "cudaHostRegister");
}

void release_host(std::byte* memory) noexcept {
  cudaHostUnregister(memory);
  cudaGetLastError();
}

void fetch(std::byte* pinned, const std::byte* device, std::uint64_t size_bytes, const Stream& stream) {
  use(stream.gpu());
  check(cudaMemcpyAsync(pinned, device, size_bytes, cudaMemcpyDeviceToHost, cuda(stream)), "cudaMemcpyAsync");
}

std::byte* allocate_pinned(int gpu, std::uint64_t size_bytes) {
  use(gpu);  // else a thread's first call takes memory of GPU 0
  ++allocated;
  void* memory = nullptr;
  check(cudaMallocHost(&memory, size_bytes), "cudaMallocHost");
  return static_cast<std::byte*>(memory);
}

void release_pinned(std::byte* memory) noexcept {
  cudaFreeHost(memory);
  cudaGetLastError();
}

std::uint64_t allocations() noexcept {
  return allocated;
}

void copy_strided(const CopyTask* tasks, std::uint64_t count, const std::byte* source, std::byte* destination,
                  const Stream& stream) {
  if (count == 0) return;
  use(stream.gpu());
  check(launch_copy(tasks, count, source, destination, cuda(stream)), "copy kernel");
}

void gather(const StridedElements& elements, std::optional<Rounding> rounding, std::byte* destination,
            const std::byte* matrix, const Stream& stream) {
  if (elements.count == 0) return;
  use(stream.gpu());
  auto* const queue = cuda(stream);
  check(rounding ? launch_gather_narrow(elements, *rounding, destination, matrix, queue)
                 : launch_gather(elements, destination, matrix, queue),
        "gather kernel");
}

void scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source, const Stream& stream) {
  if (elements.count == 0) return;
  use(stream.gpu());
  check(launch_scatter(elements, matrix, source, cuda(stream)), "scatter kernel");
}

void quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination, const Stream& stream) {
  if (source.rows == 0 || source.columns == 0) return;
  use(stream.gpu());
  check(launch_quantize(kind, source, destination, cuda(stream)), "quantize kernel");
}

void generate(const WordGenerator& words, const ParameterRows& rows, std::byte* data, const Stream& stream) {
  if (rows.rows == 0 || rows.row_bytes == 0) return;
  use(stream.gpu());
  check(launch_generate(words, rows.joined(), data, cuda(stream)), "generate kernel");
}

void compare(const WordGenerator& words, const ParameterRows& rows, const std::byte* data, std::uint64_t first,
             std::uint64_t* difference, const Stream& stream) {
  if (rows.rows == 0 || rows.row_bytes == 0) return;
  use(stream.gpu());
  check(launch_compare(words, rows.joined(), data, first, difference, cuda(stream)), "compare kernel");
}

void compare(const std::byte* reference, const ParameterRows& rows, const std::byte* data, std::uint64_t first,
             std::uint64_t* difference, const Stream& stream) {
  if (rows.rows == 0 || rows.row_bytes == 0) return;
  use(stream.gpu());
  check(launch_compare(reference, rows.joined(), data, first, difference, cuda(stream)), "compare kernel");
}

void digest(const DigestTask* tasks, std::uint64_t count, const std::byte* base, std::uint64_t* results, Share share,
            const Stream& stream) {
  if (count == 0) return;
  use(stream.gpu());
  check(launch_digest(tasks, count, base, results, share, cuda(stream)), "digest kernel");
}

void copy_and_digest(const DigestTask* tasks, std::uint64_t count, const CopySource& source, std::byte* base,
                     std::uint64_t* results, Share share, const Stream& stream) {
  if (count == 0) return;
  use(stream.gpu());
  check(launch_copy_and_digest(tasks, count, source, base, results, share, cuda(stream)), "copy and digest kernel");
}

}  // namespace weightcast::gpu
