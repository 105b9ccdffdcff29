#include "weightcast/transport/backend_cuda/nccl_communicator.hpp"

#include <sched.h>

#include <cstdlib>
#include <future>
#include <thread>
#include <utility>

namespace weightcast {
namespace {

constexpr auto abort_limit = std::chrono::seconds(10);

void use(int gpu) {
  if (const auto status = cudaSetDevice(gpu); status != cudaSuccess)
    fail(ExitCode::unavailable, "cudaSetDevice({}): {}", gpu, cudaGetErrorString(status));
}

}  // namespace

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int size, int rank, int gpu) : gpu_(gpu) {
  use(gpu);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  check(ncclCommInitRankConfig(&comm_, size, id, rank, &config), "ncclCommInitRankConfig");
}

NcclCommunicator::NcclCommunicator(NcclCommunicator&& other) noexcept
    : comm_(std::exchange(other.comm_, nullptr)), gpu_(other.gpu_) {}

NcclCommunicator& NcclCommunicator::operator=(NcclCommunicator&& other) noexcept {
  std::swap(comm_, other.comm_);
  std::swap(gpu_, other.gpu_);
  return *this;
}

void NcclCommunicator::check(ncclResult_t status, const char* call) const {
  if (status == ncclSuccess || status == ncclInProgress) return;
  throw Error(ExitCode::unavailable,
              fmt::format("{}: {} ({})", call, ncclGetErrorString(status),
                          comm_ != nullptr ? ncclGetLastError(comm_) : ncclGetLastError(nullptr)),
              "run again with NCCL_DEBUG=WARN in the environment of all ranks to see NCCL's own reasons");
}

bool NcclCommunicator::taken_in(const char* what) const {
  auto status = ncclSuccess;
  check(ncclCommGetAsyncError(comm_, &status), "ncclCommGetAsyncError");
  check(status, what);
  return status == ncclSuccess;
}

void NcclCommunicator::ready(Deadline deadline, const char* what) const {
  while (!taken_in(what)) {
    if (deadline.passed()) fail(ExitCode::deadline, "NCCL: {} did not finish in time", what);
    ::sched_yield();
  }
}

void NcclCommunicator::group(FunctionRef<ncclResult_t()> calls, Deadline deadline) const {
  use(gpu_);
  check(ncclGroupStart(), "ncclGroupStart");
  const auto queued = calls();
  const auto ended = ncclGroupEnd();  // also after a failure: the group is this thread's
  check(queued, "queueing a transfer");
  check(ended, "ncclGroupEnd");
  ready(deadline, "setting up a transfer");
}

void NcclCommunicator::wait(const gpu::Stream& stream, Deadline deadline, const char* what) const {
  use(gpu_);
  while (true) {
    const auto status = cudaStreamQuery(cuda(stream));
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) fail(ExitCode::unavailable, "{}: {}", what, cudaGetErrorString(status));
    taken_in(what);
    if (deadline.passed()) fail(ExitCode::deadline, "NCCL: {} did not finish in time", what);
    ::sched_yield();
  }
}

void NcclCommunicator::barrier(std::byte* scratch, const gpu::Stream& stream, Deadline deadline) const {
  int bound = -1;
  check(ncclCommCuDevice(comm_, &bound), "ncclCommCuDevice");
  if (bound != gpu_) fail(ExitCode::internal, "NCCL is bound to GPU {} instead of {}", bound, gpu_);
  group([&] { return ncclAllReduce(scratch, scratch, 1, ncclFloat32, ncclSum, comm_, cuda(stream)); }, deadline);
  wait(stream, deadline, "the first barrier");
}

void NcclCommunicator::abort() noexcept {
  if (comm_ == nullptr) return;
  // In a thread of its own, because it can hang as well.
  try {
    std::promise<void> done;
    auto finished = done.get_future();
    std::thread([comm = comm_, gpu = gpu_, done = std::move(done)]() mutable {
      cudaSetDevice(gpu);
      ncclCommAbort(comm);
      done.set_value();
    }).detach();
    finished.wait_for(abort_limit);
  } catch (...) {  // no thread to be had: the process will end soon
  }
  comm_ = nullptr;
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
