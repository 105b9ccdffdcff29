#include "weightcast/transport/backend_cuda/nccl_communicator.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <future>
#include <system_error>
#include <thread>
#include <utility>

// Communicators are blocking ones. Those that are not start and join a thread in every ncclGroupEnd(), which costs more
// than all else that a small update does. What a blocking one may wait for (NCCL 2.28):
// - the other ranks, while it is made and when an algorithm is used first (then it connects, ncclPrepareTasks()). Both
//   are done in begin()'s thread. A broadcast of whatever size has one algorithm, the ring, with all its protocols;
// - room: in the queue of work for its kernels (1 MiB, 96 bytes for a transfer), and in CUDA's queue (1024 for a
//   stream; with ours a group takes about 8). Kernels that wait for a lost rank give none back. So we wait before, in
//   make_room(), where there is a deadline.

namespace weightcast {
namespace {

constexpr auto abort_limit = std::chrono::seconds(10);
constexpr std::size_t most_grouped = 128;  // transfers
constexpr std::uint64_t calls_a_mark = 8;  // twice as many are queued at most

// In words, what is waited for:
constexpr auto joining = "forming the communicator", first_use = "the first barrier", queueing = "queueing transfers";

void use(int gpu) {
  if (const auto status = cudaSetDevice(gpu); status != cudaSuccess)
    fail(ExitCode::unavailable, "cudaSetDevice({}): {}", gpu, cudaGetErrorString(status));
}

bool failed(ncclResult_t status) noexcept {
  return status != ncclSuccess && status != ncclInProgress;
}

void check(ncclResult_t status, const char* call, ncclComm_t comm) {
  if (!failed(status)) return;
  throw Error(ExitCode::unavailable,
              fmt::format("{}: {} ({})", call, ncclGetErrorString(status), ncclGetLastError(comm)),
              "run again with NCCL_DEBUG=WARN in the environment of all ranks to see NCCL's own reasons");
}

/// False while NCCL is still taking in, which is never seen unless NCCL_COMM_BLOCKING=0 is in the environment. Throws
/// what NCCL has noticed on its own.
bool taken_in(ncclComm_t comm, const char* what) {
  auto status = ncclSuccess;
  check(ncclCommGetAsyncError(comm, &status), "ncclCommGetAsyncError", comm);
  check(status, what, comm);
  return status == ncclSuccess;
}

bool done(cudaStream_t stream, ncclComm_t comm, const char* what) {
  const auto status = cudaStreamQuery(stream);
  if (status == cudaSuccess) return true;
  if (status != cudaErrorNotReady) fail(ExitCode::unavailable, "{}: {}", what, cudaGetErrorString(status));
  taken_in(comm, what);
  return false;
}

/// Waits for `reached`, which sees errors of the peers.
template <typename Condition>
void poll(Condition reached, Deadline deadline, const char* what) {
  while (!reached()) {
    if (deadline.passed()) fail(ExitCode::deadline, "NCCL: {} did not finish in time", what);
    ::sched_yield();
  }
}

}  // namespace

/// What a communicator shares with a thread that is in NCCL for it.
struct NcclCommunicator::Handle {
  enum class Stage : std::uint8_t { working, done, given_up };

  explicit Handle(int ordinal)
      : gpu(ordinal),
        scratch(Buffer::allocate({MemoryKind::cuda, ordinal}, sizeof(float), false, "a barrier")),
        stream(ordinal) {}
  bool working() const noexcept { return stage == Stage::working; }

  int gpu;
  ncclComm_t comm = nullptr;
  // Of the barrier: they must last as long as its kernels, that is until NCCL was aborted.
  Buffer scratch;
  gpu::Stream stream;
  // Of the thread:
  std::exception_ptr error;
  std::atomic<Stage> stage{Stage::done};
};

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int size, int rank, int gpu)
    : handle_(std::make_shared<Handle>(gpu)), mark_(gpu) {
  begin([=](Handle& handle) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    const auto status = ncclCommInitRankConfig(&handle.comm, size, id, rank, &config);
    check(status, "ncclCommInitRankConfig", handle.comm);
    while (handle.working() && !taken_in(handle.comm, joining)) ::sched_yield();
  });
}

NcclCommunicator& NcclCommunicator::operator=(NcclCommunicator&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(mark_, other.mark_);
  std::swap(calls_, other.calls_);
  return *this;
}

// A thread that was given up ends when NCCL lets it: its peers have come after all, or are gone. NCCL cannot be aborted
// from outside while it is in there, because that frees what it works on.
template <typename Work>
void NcclCommunicator::begin(Work work) {
  const auto run = [handle = handle_, work] {
    try {
      use(handle->gpu);
      work(*handle);
    } catch (...) {
      handle->error = std::current_exception();
    }
    auto stage = Handle::Stage::working;
    if (!handle->stage.compare_exchange_strong(stage, Handle::Stage::done)) ncclCommAbort(handle->comm);
  };
  handle_->stage = Handle::Stage::working;
  try {
    std::thread(run).detach();
  } catch (const std::system_error& error) {
    handle_->stage = Handle::Stage::done;
    fail(ExitCode::unavailable, "no thread for NCCL: {}", error.what());
  }
}

void NcclCommunicator::finish(Deadline deadline, const char* what) {
  for (Patience patience; handle_->working(); patience.pause()) {
    if (deadline.passed()) fail(ExitCode::deadline, "NCCL: {} did not finish in time", what);
  }
  if (handle_->error) std::rethrow_exception(handle_->error);
}

void NcclCommunicator::ready(Deadline deadline) {
  finish(deadline, joining);
  int bound = -1;
  check(ncclCommCuDevice(handle_->comm, &bound), "ncclCommCuDevice", handle_->comm);
  if (bound != handle_->gpu) fail(ExitCode::internal, "NCCL is bound to GPU {} instead of {}", bound, handle_->gpu);
}

void NcclCommunicator::barrier(Deadline deadline) {
  begin([](Handle& handle) {
    auto* const data = handle.scratch.region().data;
    auto* const stream = cuda(handle.stream);
    // As one group: no kernel waits on the GPU before all is connected, since until then nobody can abort it.
    check(ncclGroupStart(), "ncclGroupStart", handle.comm);
    const auto reduced = ncclAllReduce(data, data, 1, ncclFloat32, ncclSum, handle.comm, stream);
    const auto sent = ncclBroadcast(data, data, sizeof(float), ncclUint8, 0, handle.comm, stream);
    const auto ended = ncclGroupEnd();
    check(reduced, "ncclAllReduce", handle.comm);
    check(sent, "ncclBroadcast", handle.comm);
    check(ended, "ncclGroupEnd", handle.comm);
    while (handle.working() && !(taken_in(handle.comm, first_use) && done(stream, handle.comm, first_use)))
      ::sched_yield();
  });
  finish(deadline, first_use);
}

bool NcclCommunicator::room() const {
  return (calls_ + 1) % calls_a_mark != 0 || mark_->done();
}

void NcclCommunicator::make_room(const gpu::Stream& stream, Deadline deadline) {
  if (++calls_ % calls_a_mark != 0) return;
  const auto reached = [&] { return taken_in(handle_->comm, queueing) && mark_->done(); };
  poll(reached, deadline, queueing);
  mark_->record(stream);
}

void NcclCommunicator::broadcast(std::size_t count, FunctionRef<Region(std::size_t)> place, int root,
                                 const gpu::Stream& stream, Deadline deadline) {
  if (count == 0) return;
  make_room(stream, deadline);
  auto* const comm = handle_->comm;
  for (std::size_t first = 0; first < count; first += most_grouped) {
    use(handle_->gpu);
    check(ncclGroupStart(), "ncclGroupStart", comm);
    auto queued = ncclSuccess;
    for (auto i = first; i < std::min(count, first + most_grouped) && !failed(queued); ++i) {
      const auto region = place(i);
      queued = ncclBroadcast(region.data, region.data, region.size_bytes, ncclUint8, root, comm, cuda(stream));
    }
    const auto ended = ncclGroupEnd();  // also after a failure: the group is this thread's
    check(queued, "ncclBroadcast", comm);
    check(ended, "ncclGroupEnd", comm);
    poll([&] { return taken_in(comm, queueing); }, deadline, queueing);
  }
}

void NcclCommunicator::wait(const gpu::Stream& stream, Deadline deadline, const char* what) const {
  use(handle_->gpu);
  poll([&] { return done(cuda(stream), handle_->comm, what); }, deadline, what);
}

void NcclCommunicator::abort() noexcept {
  auto handle = std::exchange(handle_, nullptr);
  auto stage = Handle::Stage::working;
  if (!handle || handle->stage.compare_exchange_strong(stage, Handle::Stage::given_up)) return;  // see begin()
  // In a thread of its own, because it can hang as well.
  try {
    std::promise<void> over;
    auto finished = over.get_future();
    std::thread([handle = std::move(handle), over = std::move(over)]() mutable {
      cudaSetDevice(handle->gpu);
      ncclCommAbort(handle->comm);
      handle.reset();
      over.set_value();
    }).detach();
    finished.wait_for(abort_limit);
  } catch (...) {  // no thread to be had: the process will end soon
  }
}

std::optional<std::string> refuse_nccl(const Peers& peers, int rank, int other) {
  // With that, NCCL is told itself which ranks share a host.
  if (std::getenv("NCCL_HOSTID") != nullptr || !same_gpu(peers.place(rank), peers.place(other))) return std::nullopt;
  return fmt::format("ranks {} and {} share a GPU ({} {}): NCCL needs one for each rank, see --gpus", rank, other,
                     peers.place(rank).host, peers.place(rank).pci_bus_id);
}

std::vector<ncclUniqueId> share_ids(const Peers& peers, std::size_t count, Deadline deadline) {
  const auto versions = peers.group->all_gather(gpu::nccl_version(), deadline);
  for (std::size_t rank = 1; rank < versions.size(); ++rank) {
    if (versions[rank] != versions[0])
      throw Error(ExitCode::config,
                  fmt::format("NCCL is {} on rank 0 and {} on rank {}", versions[0], versions[rank], rank),
                  "let all ranks load the same libnccl.so.2: see LD_LIBRARY_PATH, and what PyTorch brings along");
  }
  std::vector<ncclUniqueId> ids(count);
  auto status = ncclSuccess;
  if (peers.trainer()) {
    for (auto& id : ids) status = status == ncclSuccess ? ncclGetUniqueId(&id) : status;
  }
  peers.group->broadcast(std::as_writable_bytes(std::span(ids)), 0, deadline);
  if (status != ncclSuccess) fail(ExitCode::unavailable, "ncclGetUniqueId: {}", ncclGetErrorString(status));
  return ids;
}

}  // namespace weightcast
