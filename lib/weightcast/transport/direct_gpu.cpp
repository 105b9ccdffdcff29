#include <sched.h>

#include <algorithm>

#include "weightcast/transport/bound_transport.hpp"
#include "weightcast/transport/copy_tasks.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// Digest tasks in one kernel: 128 MiB, 0.1 ms. So long the engine's other kernels wait for one that fills the GPU. Two
/// streams take turns, so that one begins while another ends.
constexpr std::size_t digests_at_once = 1024;

class DirectGpu final : public BoundTransport {
 public:
  DirectGpu() : BoundTransport("direct", MemoryKind::cuda) {}

 private:
  std::optional<std::string> refuse(const Peers& peers, int rank, int other) const override {
    return refuse_direct(peers, rank, other);
  }

  void bind(Deadline deadline) override {
    upstream_.attach(*peers_, *plan_, *endpoints_, deadline);
    if (peers_->trainer()) return;
    const auto placement = peers_->placement();
    stream_ = gpu::Stream(placement.gpu);
    beside_trainer_ = upstream_.rank() == 0 && !upstream_.announces() &&
                      same_gpu(peers_->place(upstream_.rank()), peers_->place(peers_->rank()));
    const auto& schedule = upstream_.schedule();
    for (const auto& part : schedule.single) {
      first_task_.push_back(tasks_.count());
      for (const auto& segment : part.segments.of(schedule.segments)) {
        if (!segment.contiguous()) tasks_.add(segment);
      }
    }
    first_task_.push_back(tasks_.count());
    tasks_.upload(placement, "the copy plan");
    std::size_t most = 0;
    for (const auto* parts : {&schedule.single, &schedule.whole}) {
      std::size_t copies = 0;
      for (const auto& part : *parts) copies += part.copies.count;
      most = std::max(most, copies);
    }
    from_.resize(most);
    to_.resize(most);
    sizes_.resize(most);
    if (upstream_.announces()) {
      for (std::size_t i = 0; i < std::max(schedule.single.size(), schedule.whole.size()); ++i)
        arrivals_.emplace_back(placement.gpu);
    }
  }

  void move(const Batch& batch, Deadline deadline) override {
    if (peers_->trainer()) {
      work(batch);
      egress_bytes_ = plan_->egress_bytes(batch.parameters.first, batch.parameters.count);
      return;
    }
    if (beside_trainer_ && batch.digests != nullptr) {
      copy_and_digest(batch, *batch.digests);
      return stream_.synchronize(deadline, "copying weights");
    }
    const std::byte* const source = upstream_.base(batch);
    const auto parts = upstream_.schedule().parts(batch.parameters);
    upstream_.begin(parts.size());
    std::size_t queued = 0, announced = 0, used = 0;
    while (queued < parts.size() || (upstream_.announces() && announced < queued)) {
      bool progress = false;
      for (; queued < parts.size() && upstream_.ready(queued); ++queued, progress = true) {
        used = queue(parts[queued], source, sink(batch), used);
        if (upstream_.announces()) arrivals_[queued].record(stream_);
        if (batch.gpu_observer != nullptr) batch.gpu_observer->landed(stream_, parts[queued].parameters);
      }
      for (; upstream_.announces() && announced < queued && arrivals_[announced].done(); ++announced, progress = true)
        upstream_.announce();
      if (deadline.passed())
        fail(ExitCode::deadline, "pulling weights from rank {} did not finish in time", upstream_.rank());
      if (!progress) ::sched_yield();
    }
    stream_.synchronize(deadline, "pulling weights");
    upstream_.finish(deadline);
  }

  /// Queues one part; its pointers stay in from_ and to_ until the stream is done. Returns how many are in use.
  std::size_t queue(const Part& part, const std::byte* source, std::byte* sink, std::size_t used) {
    const auto first = used;
    for (const auto& copy : part.copies.of(upstream_.schedule().copies)) {
      from_[used] = source + copy.source_offset;
      to_[used] = sink + copy.destination_offset;
      sizes_[used++] = copy.size_bytes;
    }
    gpu::copy_batch(to_.data() + first, from_.data() + first, sizes_.data() + first, used - first, stream_);
    const auto task = first_task_[part.parameters.first];
    tasks_.queue({task, first_task_[part.parameters.end()] - task}, source, sink, stream_);
    return used;
  }

  /// Queued in pieces, so that whoever else uses the GPU gets in between.
  void copy_and_digest(const Batch& batch, const gpu::DigestTarget& digests) {
    stream_.after(*digests.stream);
    const gpu::Stream* const streams[] = {&stream_, digests.stream};
    const auto end = digests.first_task[batch.parameters.end()];
    for (std::size_t begin = digests.first_task[batch.parameters.first], i = 0; begin < end;
         begin += digests_at_once, ++i) {
      gpu::copy_and_digest(digests.tasks + begin, std::min(digests_at_once, end - begin), upstream_.base(batch),
                           sink(batch), digests.sums, *streams[i % 2]);
    }
    stream_.after(*digests.stream);
    digests.stream->after(stream_);
  }

  Upstream upstream_;  // on engines, as are all below
  gpu::Stream stream_;
  bool beside_trainer_ = false;          // on its GPU, and no other replica waits
  CopyTasks tasks_;                      // of what is strided
  std::vector<std::size_t> first_task_;  // of each parameter, and the end
  std::vector<gpu::Event> arrivals_;     // of parts that are announced
  std::vector<const void*> from_;
  std::vector<void*> to_;
  std::vector<std::size_t> sizes_;
};

}  // namespace

std::unique_ptr<Transport> make_direct_gpu() {
  return std::make_unique<DirectGpu>();
}

}  // namespace weightcast
