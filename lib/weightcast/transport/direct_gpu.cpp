#include <sched.h>

#include <algorithm>

#include "weightcast/transport/bound_transport.hpp"
#include "weightcast/transport/copy_tasks.hpp"
#include "weightcast/transport/push.hpp"

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

  /// Whether the trainer pushes to that engine rank: one across a link, which receives from it.
  bool pushes_to(int rank) const {
    return peers_->roster.replica(rank) == 0 && !same_gpu(peers_->place(0), peers_->place(rank)) &&
           !upstream_.sinks_of(rank).empty();
  }

  void bind(Deadline deadline) override {
    upstream_.attach(*peers_, *plan_, *endpoints_, deadline);
    const auto placement = peers_->placement();
    if (peers_->trainer()) {
      for (std::size_t t = 0; t < plan_->tp; ++t) {
        const int rank = peers_->roster.engine_rank(0, t);
        if (pushes_to(rank))
          pushes_.emplace_back(upstream_.comm(), rank, plan_->ranks[t].schedule, upstream_.sinks_of(rank),
                               placement.gpu);
      }
      return;
    }
    stream_ = gpu::Stream(placement.gpu);
    beside_trainer_ = upstream_.rank() == 0 && !upstream_.announces() &&
                      same_gpu(peers_->place(upstream_.rank()), peers_->place(peers_->rank()));
    if (pushes_to(peers_->rank())) {
      pushed_.emplace(upstream_.comm(), upstream_.rank());
      landed_ = gpu::Stream(placement.gpu);
    }
    const auto& schedule = upstream_.schedule();
    for (const auto& part : schedule.single) {
      first_task_.push_back(tasks_.count());
      for (const auto& segment : part.segments.of(schedule.segments)) {
        if (!segment.contiguous()) tasks_.add(segment);
      }
    }
    first_task_.push_back(tasks_.count());
    tasks_.upload(placement, "the copy plan");
    copies_ = CopyBatch(schedule.copies.size() + schedule.halves.size());
    if (upstream_.announces() || pushed_) {
      for (std::size_t i = 0; i < std::max(schedule.single.size(), schedule.whole.size()); ++i)
        arrivals_.emplace_back(placement.gpu);
    }
  }

  void move(const Batch& batch, Deadline deadline) override {
    if (peers_->trainer()) return push(batch, deadline);
    if (beside_trainer_ && batch.digests != nullptr) {
      copy_and_digest(batch, *batch.digests);
      return stream_.synchronize(deadline, "copying weights");
    }
    try {
      pull(batch, deadline);
    } catch (...) {
      drain(stream_);
      throw;
    }
  }

  void pull(const Batch& batch, Deadline deadline) {
    const std::byte* const source = upstream_.base(batch);
    const auto parts = upstream_.schedule().parts(batch.parameters);
    const bool halves = pushed_ && Schedule::pushes(parts), watched = upstream_.announces() || halves;
    upstream_.begin(parts.size());
    if (halves) pushed_->begin(parts, batch.sink_index);
    std::size_t queued = 0, arrived = 0;
    copies_.begin();
    while (queued < parts.size() || (watched && arrived < queued)) {
      bool progress = false;
      for (; queued < parts.size() && upstream_.ready(queued); ++queued, progress = true) {
        queue(parts[queued], halves, source, sink(batch));
        if (watched) arrivals_[queued].record(stream_);
        if (!halves && batch.gpu_observer != nullptr) batch.gpu_observer->landed(stream_, parts[queued].parameters);
      }
      for (; watched && arrived < queued && arrivals_[arrived].done() && (!halves || pushed_->there(arrived));
           ++arrived, progress = true) {
        if (halves && batch.gpu_observer != nullptr) batch.gpu_observer->landed(landed_, parts[arrived].parameters);
        upstream_.announce();
      }
      if (deadline.passed())
        fail(ExitCode::deadline, "pulling weights from rank {} did not finish in time", upstream_.rank());
      if (!progress) ::sched_yield();
    }
    stream_.synchronize(deadline, "pulling weights");
    upstream_.finish(deadline);
  }

  void push(const Batch& batch, Deadline deadline) {
    for (auto& push : pushes_) push.begin(batch.parameters, source(batch));
    work(batch);
    egress_bytes_ = plan_->egress_bytes(batch.parameters.first, batch.parameters.count);
    try {
      for (bool done = false; !done;) {
        done = true;
        for (auto& push : pushes_) done = push.advance() && done;
        if (done) break;
        if (deadline.passed()) fail(ExitCode::deadline, "pushing weights did not finish in time");
        ::sched_yield();
      }
    } catch (...) {
      for (auto& push : pushes_) push.drain();
      throw;
    }
  }

  /// Queues one part, or the half of it that is pulled.
  void queue(const Part& part, bool halves, const std::byte* source, std::byte* sink) {
    const auto& schedule = upstream_.schedule();
    const bool half = halves && part.pushed.count != 0;
    copies_.queue(half ? part.pulled.of(schedule.halves) : part.copies.of(schedule.copies), source, sink, stream_);
    const auto task = first_task_[part.parameters.first];
    tasks_.queue({task, first_task_[part.parameters.end()] - task}, source, sink, stream_);
  }

  /// Queued in pieces, so that whoever else uses the GPU gets in between.
  void copy_and_digest(const Batch& batch, const gpu::DigestTarget& digests) {
    stream_.after(*digests.stream);
    const gpu::Stream* const streams[] = {&stream_, digests.stream};
    const auto end = digests.first_task[batch.parameters.end()];
    for (std::size_t begin = digests.first_task[batch.parameters.first], i = 0; begin < end;
         begin += digests_at_once, ++i) {
      gpu::copy_and_digest(digests.tasks + begin, std::min(digests_at_once, end - begin), {upstream_.base(batch)},
                           sink(batch), digests.sums, *streams[i % 2]);
    }
    stream_.after(*digests.stream);
    digests.stream->after(stream_);
  }

  Upstream upstream_;
  std::vector<Push> pushes_;  // on the trainer
  // On engines:
  std::optional<Pushed> pushed_;
  bool beside_trainer_ = false;          // on its GPU, and no other replica waits
  CopyTasks tasks_;                      // of what is strided
  std::vector<std::size_t> first_task_;  // of each parameter, and the end
  std::vector<gpu::Event> arrivals_;     // of parts that somebody waits for
  CopyBatch copies_;                     // of what is contiguous
  gpu::Stream stream_, landed_;          // on the latter nothing is queued: what is announced by it is there
};

}  // namespace

std::unique_ptr<Transport> make_direct_gpu() {
  return std::make_unique<DirectGpu>();
}

}  // namespace weightcast
