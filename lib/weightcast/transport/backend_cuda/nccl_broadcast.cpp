#include <algorithm>

#include "weightcast/core/bytes.hpp"
#include "weightcast/transport/backend_cuda/nccl_backend.hpp"
#include "weightcast/transport/backend_cuda/nccl_communicator.hpp"
#include "weightcast/transport/blocks.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t step_bytes = 64 * mebibyte;
constexpr std::uint64_t alignment = TransferPlan::alignment_bytes;

/// Whole rows of one full parameter, from the trainer's weights into every engine's staging buffer.
struct Step {
  std::uint64_t source = 0, size_bytes = 0;
  std::size_t first_task = 0, tasks = 0;  // that slice it
  Part landed;                            // the parameter, when these are its last rows
};

class NcclBroadcast final : public Transport {
 public:
  std::string_view name() const noexcept override { return "nccl"; }
  std::optional<std::string> probe(const Peers& peers) const override { return refuse_nccl(peers); }

  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    const auto gpu = peers.placement.gpu;
    comm_ = NcclCommunicator(share_ids(peers, 1, deadline)[0], peers.group->size(), peers.group->rank(), gpu);
    stream_ = gpu::Stream(gpu);
    std::vector<gpu::CopyTask> tasks;
    for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) add_steps(p, tasks);
    first_step_.push_back(steps_.size());
    if (!peers.trainer()) {
      slice_stream_ = gpu::Stream(gpu);
      tasks_ = Buffer::allocate(peers.placement, tasks.size() * sizeof(gpu::CopyTask), false, "the slice plan");
      if (!tasks.empty()) write_region(tasks_.region(), 0, std::as_bytes(std::span(tasks)));
      half_bytes_ = (half_bytes_ + alignment - 1) / alignment * alignment;
    }
    allocate();
    const auto scratch = Buffer::allocate(peers.placement, sizeof(float), false, "a barrier");
    comm_.ready(deadline, "forming the communicator");
    comm_.barrier(scratch.region().data, stream_, deadline);
  }

  void run(const Batch& batch, Deadline deadline) override {
    egress_bytes_ = 0;
    allocate();
    const auto begin = first_step_[batch.first_parameter], end = first_step_[batch.first_parameter + batch.parameters];
    try {
      // On engines, one half of the staging buffer is sliced while the next step arrives in the other.
      for (auto k = begin; k < end; ++k) {
        if (!peers_->trainer()) {
          stream_.after(slice_stream_);  // done with step k - 2
          slice_stream_.after(stream_);  // step k - 1 has arrived
        }
        broadcast(steps_[k], k, batch, deadline);
        if (!peers_->trainer() && k > begin) slice(steps_[k - 1], k - 1, batch);
      }
      if (!peers_->trainer() && begin < end) {
        slice_stream_.after(stream_);
        slice(steps_[end - 1], end - 1, batch);
        comm_.wait(slice_stream_, deadline, "moving weights");
      }
      if (peers_->trainer()) do_work(batch);
      comm_.wait(stream_, deadline, "moving weights");
    } catch (...) {
      comm_.abort();
      throw;
    }
  }

  void release_cache() noexcept override { staging_ = Buffer(); }

  Traffic traffic() const noexcept override { return {egress_bytes_, staging_.region().size_bytes}; }

 private:
  void allocate() {
    if (!peers_->trainer() && staging_.region().data == nullptr)
      staging_ = Buffer::allocate(peers_->placement, 2 * half_bytes_, false, "broadcast staging");
  }

  void add_steps(std::size_t parameter, std::vector<gpu::CopyTask>& tasks) {
    const auto& rule = plan_->model.parameters[parameter];
    const auto shape = matrix_of(rule.info);
    const auto element_bytes = static_cast<std::uint64_t>(bits(rule.info.dtype)) / 8;
    const auto pitch = shape.columns * element_bytes;
    const auto most = std::max<std::uint64_t>(step_bytes / pitch, 1);
    first_step_.push_back(steps_.size());
    for (std::uint64_t row = 0; row < shape.rows; row += most) {
      const auto rows = std::min(most, shape.rows - row);
      half_bytes_ = std::max(half_bytes_, rows * pitch);
      Step step{plan_->source_offsets[parameter] + row * pitch, rows * pitch, tasks.size(), 0, {}};
      if (row + rows == shape.rows) step.landed = {parameter, 1};
      if (!peers_->trainer()) {
        // What of these rows is this rank's.
        const auto mine = shard_of(rule, plan_->tp, peers_->tp_rank());
        const auto begin = std::max(row, mine.row), end = std::min(row + rows, mine.row + mine.rows);
        const auto width = mine.columns * element_bytes;
        const auto to = plan_->ranks[peers_->tp_rank()].shards[parameter].destination;
        if (begin < end && width != 0)
          add_copy_tasks(tasks, {(begin - row) * pitch + mine.column * element_bytes, to + (begin - mine.row) * width,
                                 width, end - begin, pitch, width});
      }
      step.tasks = tasks.size() - step.first_task;
      steps_.push_back(step);
    }
  }

  std::byte* half(std::size_t k) const noexcept { return staging_.region().data + k % 2 * half_bytes_; }

  void broadcast(const Step& step, std::size_t k, const Batch& batch, Deadline deadline) {
    auto* const data = peers_->trainer() ? endpoints_->sources.at(batch.source)->region().data + step.source : half(k);
    comm_.group([&] { return ncclBroadcast(data, data, step.size_bytes, ncclUint8, 0, comm_.get(), cuda(stream_)); },
                deadline);
    if (peers_->trainer()) egress_bytes_ += step.size_bytes;  // NCCL broadcasts along a ring
  }

  void slice(const Step& step, std::size_t k, const Batch& batch) {
    gpu::copy_strided(reinterpret_cast<const gpu::CopyTask*>(tasks_.region().data) + step.first_task, step.tasks,
                      half(k), endpoints_->sinks.at(batch.sink).data, slice_stream_);
    if (batch.witness != nullptr && step.landed.count != 0)
      batch.witness->landed_on(slice_stream_, step.landed.first, step.landed.count);
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  NcclCommunicator comm_;
  gpu::Stream stream_, slice_stream_;
  std::vector<Step> steps_;
  std::vector<std::size_t> first_step_;  // of each parameter, and the end
  std::uint64_t half_bytes_ = 0, egress_bytes_ = 0;
  Buffer tasks_, staging_;
};

}  // namespace

std::unique_ptr<Transport> make_nccl_broadcast() {
  return std::make_unique<NcclBroadcast>();
}

std::unique_ptr<Transport> make_nccl(Method method) {
  return method == Method::sharded ? make_nccl_sharded() : make_nccl_broadcast();
}

}  // namespace weightcast
