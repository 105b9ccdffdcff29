#include <algorithm>

#include "weightcast/core/bytes.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/transport/backend_cuda/nccl_communicator.hpp"
#include "weightcast/transport/bound_transport.hpp"
#include "weightcast/transport/copy_tasks.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t chunk_bytes = 64 * mebibyte;

class NcclBroadcast final : public BoundTransport {
 public:
  NcclBroadcast() : BoundTransport("nccl", MemoryKind::cuda) {}

  void release_cache() noexcept override { staging_ = Buffer(); }

 private:
  std::optional<std::string> refuse(const Peers& peers, int rank, int other) const override {
    return refuse_nccl(peers, rank, other);
  }
  std::uint64_t staging_bytes() const noexcept override { return staging_.region().size_bytes; }

  void bind(Deadline deadline) override {
    const auto placement = peers_->placement();
    comm_ = NcclCommunicator(share_ids(*peers_, 1, deadline)[0], peers_->group->size(), peers_->rank(), placement.gpu);
    stream_ = gpu::Stream(placement.gpu);
    chunks_ = chunks_of(*plan_, chunk_bytes);
    for (const auto& chunk : chunks_) half_bytes_ = std::max(half_bytes_, chunk.size_bytes);
    half_bytes_ = round_up(half_bytes_, TransferPlan::alignment_bytes);
    if (!peers_->trainer()) {
      slice_stream_ = gpu::Stream(placement.gpu);
      for (const auto& chunk : chunks_) {
        const auto first = tasks_.count();
        tasks_.add(segment_of(*plan_, peers_->tp_rank(), chunk.staged));
        slices_.push_back({first, tasks_.count() - first});
      }
      tasks_.upload(placement, "the slice plan");
    }
    allocate();
    comm_.ready(deadline);
    comm_.barrier(deadline);
  }

  void allocate() {
    // Also a trainer rank gets what the others send.
    const bool receives = !peers_->trainer() || peers_->roster.trainers > 1;
    if (receives && staging_.region().data == nullptr)
      staging_ = Buffer::allocate(peers_->placement(), 2 * half_bytes_, false, "broadcast staging");
  }

  void move(const Batch& batch, Deadline deadline) override {
    allocate();
    const auto chunks = chunks_of(chunks_, batch.parameters);
    const auto begin = static_cast<std::size_t>(chunks.data() - chunks_.data()), end = begin + chunks.size();
    try {
      // One half of the staging buffer is sliced while the next chunk arrives in the other.
      for (auto k = begin; k < end; ++k) {
        if (!peers_->trainer()) {
          stream_.after(slice_stream_);  // done with chunk k - 2
          slice_stream_.after(stream_);  // chunk k - 1 has arrived
        }
        broadcast(k, batch, deadline);
        if (!peers_->trainer() && k > begin) slice(k - 1, batch);
      }
      if (!peers_->trainer() && begin < end) {
        slice_stream_.after(stream_);
        slice(end - 1, batch);
        comm_.wait(slice_stream_, deadline, "moving weights");
      }
      work(batch);
      comm_.wait(stream_, deadline, "moving weights");
    } catch (...) {
      comm_.abort();
      throw;
    }
  }

  std::byte* half(std::size_t k) const noexcept { return staging_.region().data + k % 2 * half_bytes_; }

  void broadcast(std::size_t k, const Batch& batch, Deadline deadline) {
    const auto& chunk = chunks_[k];
    const auto from = static_cast<int>(chunk.from);
    const bool mine = from == peers_->rank();
    auto* const data = mine ? source(batch) + chunk.source_offset : half(k);
    const auto place = [&](std::size_t) -> Region { return {data, chunk.size_bytes}; };
    comm_.broadcast(1, place, from, stream_, deadline);
    if (mine) egress_bytes_ += chunk.size_bytes;  // NCCL broadcasts along a ring
  }

  void slice(std::size_t k, const Batch& batch) {
    tasks_.queue(slices_[k], half(k), sink(batch), slice_stream_);
    const auto parameter = chunks_[k].staged.parameter_index;
    const bool complete = k + 1 == chunks_.size() || chunks_[k + 1].staged.parameter_index != parameter;
    if (batch.gpu_observer == nullptr || !complete) return;
    for (const auto& part : plan_->ranks[peers_->tp_rank()].schedule.parts({parameter, 1}))
      batch.gpu_observer->landed(slice_stream_, part);
  }

  NcclCommunicator comm_;
  gpu::Stream stream_, slice_stream_;
  std::vector<Chunk> chunks_;
  std::vector<Range> slices_;  // by chunk: the tasks that cut this engine's part out of it
  CopyTasks tasks_;
  std::uint64_t half_bytes_ = 0;
  Buffer staging_;
};

}  // namespace

std::unique_ptr<Transport> make_nccl_broadcast() {
  return std::make_unique<NcclBroadcast>();
}

}  // namespace weightcast
