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
/// What copy engines take one by one in any case: a millisecond at most.
constexpr std::uint64_t many_copies = 512;

class DirectGpu final : public BoundTransport {
 public:
  DirectGpu() : BoundTransport("direct", MemoryKind::cuda) {}

 private:
  std::optional<std::string> refuse(const Peers& peers, int rank, int other) const override {
    return refuse_direct(peers, rank, other);
  }
  bool takes(const Peers& peers, int rank) const override {
    return peers.roster.trainer(rank) || BoundTransport::takes(peers, rank);
  }

  /// Whether a rank's copies are so many and so small that it brings them by a kernel, all together: a copy engine
  /// takes each by itself, 1 us across a link and 6 us on one GPU for 32 KiB.
  static bool in_small_pieces(const Schedule& schedule) noexcept {
    std::uint64_t bytes = 0, count = 0;
    for (const auto& part : schedule.whole) {
      for (const auto& copy : part.copies.of(schedule.copies)) bytes += copy.size_bytes;
      count += part.copies.count;
    }
    return count > many_copies && bytes < count * copy_block_bytes;
  }
  bool on_gpu(int rank) const { return peers_->place(rank).placement.kind == MemoryKind::cuda; }

  /// Whether the first pushes half of what the second receives from it by this schedule: across a link between GPUs.
  bool linked(int from, int to, const Schedule& schedule) const {
    return on_gpu(from) && !same_gpu(peers_->place(from), peers_->place(to)) && !upstream_.sinks_of(to).empty() &&
           !in_small_pieces(schedule);
  }

  void bind(Deadline deadline) override {
    upstream_.attach(*peers_, *plan_, *endpoints_, deadline);
    const int gpu = peers_->placement().gpu;
    const auto push_to = [&](int rank, const Schedule& schedule, std::optional<std::size_t> from) {
      if (linked(peers_->rank(), rank, schedule))
        pushes_.emplace_back(upstream_.comm(), rank, schedule, from, upstream_.sinks_of(rank), gpu);
    };
    if (peers_->trainer()) {
      for (const auto t : plan_->sinks(trainer_rank()))
        push_to(peers_->roster.engine_rank(0, t), plan_->ranks[t].schedule, trainer_rank());
      return;
    }
    if (upstream_.next() >= 0) push_to(upstream_.next(), plan_->ranks[peers_->tp_rank()].relay, {});
    prepare_to_pull(gpu);
  }

  void prepare_to_pull(int gpu) {
    stream_ = gpu::Stream(gpu);
    beside_stream_ = gpu::Stream(gpu);
    landed_ = gpu::Stream(gpu);
    const auto& schedule = upstream_.schedule();
    const bool small = in_small_pieces(schedule);
    std::vector<bool> pushing;
    for (std::size_t from = 0; from < plan_->sources.ranks.size(); ++from) {
      const int sender = upstream_.sender({from, {}});
      pushing.push_back(linked(sender, peers_->rank(), schedule));
      by_tasks_.push_back(small && on_gpu(sender));
      beside_.push_back(same_gpu(peers_->place(sender), peers_->place(peers_->rank())));
    }
    // Where links carry at least as much from this GPU as is copied within it, the copy has time, and takes less of the
    // memory's speed away from them: with all of the GPU they stand still until it is done.
    std::uint64_t within = 0, out = 0;
    for (std::size_t t = 0; t < plan_->tp; ++t) {
      const int receiver = peers_->roster.engine_rank(0, t);
      for (const auto& segment : plan_->ranks[t].schedule.segments) {
        const auto& from = peers_->place(static_cast<int>(segment.from));
        if (!same_gpu(from, peers_->place(peers_->rank()))) continue;
        (same_gpu(from, peers_->place(receiver)) ? within : out) += segment.size_bytes();
      }
    }
    share_ = out < within ? gpu::Share::all : gpu::Share::half;
    const bool watched = upstream_.next() >= 0 || std::ranges::count(pushing, true) != 0;
    pushed_ = Pushed(upstream_, std::move(pushing));
    for (const auto& segment : schedule.segments) {
      first_task_.push_back(tasks_.count());
      if (!segment.contiguous() || by_tasks_[segment.from]) tasks_.add(segment);
    }
    first_task_.push_back(tasks_.count());
    tasks_.upload({MemoryKind::cuda, gpu}, "the copy plan");
    copies_ = CopyBatch(schedule.copies.size() + schedule.halves.size());
    for (std::size_t i = 0; watched && i < std::max(schedule.single.size(), schedule.whole.size()); ++i)
      arrivals_.emplace_back(gpu);
  }

  void move(const Batch& batch, Deadline deadline) override {
    try {
      if (peers_->trainer()) {
        push(batch, deadline);
      } else {
        pull(batch, deadline);
      }
    } catch (...) {
      for (auto& push : pushes_) push.drain();
      for (auto* stream : {&stream_, &beside_stream_}) {
        if (stream->handle() != nullptr) drain(*stream);
      }
      throw;
    }
  }

  void pull(const Batch& batch, Deadline deadline) {
    const auto parts = upstream_.schedule().parts(batch.parameters);
    upstream_.begin(parts.size());
    pushed_.begin(parts, batch.sink_index);
    for (auto& push : pushes_) push.begin(batch.parameters, sink(batch));
    copies_.begin();
    watched_ =
        upstream_.next() >= 0 || std::ranges::any_of(parts, [&](const Part& part) { return pushed_.half(part); });
    if (batch.digests != nullptr) copy_and_digest(batch, *batch.digests);
    std::size_t queued = 0, arrived = 0;
    for (bool done = false; !done;) {
      bool progress = false;
      for (; queued < parts.size() && upstream_.ready(queued); ++queued, progress = true)
        queue(parts[queued], queued, batch);
      for (; watched_ && arrived < queued && arrivals_[arrived].done() && pushed_.there(arrived);
           ++arrived, progress = true) {
        // In the order of arrival: whoever follows must not wait for a later part while this one is there.
        announce(parts[arrived], batch, landed_);
        upstream_.announce();
      }
      done = queued == parts.size() && (!watched_ || arrived == queued);
      for (auto& push : pushes_) done = push.advance(arrived, nullptr) && done;
      if (done) break;
      if (deadline.passed())
        fail(ExitCode::deadline, "pulling weights from rank {} did not finish in time",
             upstream_.sender(parts[std::min(arrived, parts.size() - 1)]));
      if (!progress) ::sched_yield();
    }
    stream_.synchronize(deadline, "pulling weights");
    beside_stream_.synchronize(deadline, "copying weights");
    upstream_.finish(deadline);
  }

  void push(const Batch& batch, Deadline deadline) {
    for (auto& push : pushes_) push.begin(batch.parameters, source(batch));
    work(batch);
    egress_bytes_ = plan_->egress_bytes_of(trainer_rank(), batch.parameters);
    // A lone source feeds all at once; one of several takes its sinks in turn, so that each is fed by one at a time.
    const bool in_turn = peers_->roster.trainers > 1;
    for (bool done = false; !done;) {
      done = true;
      for (std::size_t i = 0; i < pushes_.size(); ++i)
        done = pushes_[i].advance(everything, in_turn && i > 0 ? &pushes_[i - 1] : nullptr) && done;
      if (done) break;
      if (deadline.passed()) fail(ExitCode::deadline, "pushing weights did not finish in time");
      ::sched_yield();
    }
  }

  /// Queues one part, or the half of it that is pulled, and says when it will have landed.
  void queue(const Part& part, std::size_t index, const Batch& batch) {
    const bool beside = beside_[part.from], half = pushed_.half(part);
    auto& stream = beside ? beside_stream_ : stream_;
    if (!digests_copy(batch, part.from)) {
      const std::byte* const source = upstream_.base(batch, part);
      const auto& schedule = upstream_.schedule();
      if (!by_tasks_[part.from]) {
        copies_.queue(half ? part.pulled.of(schedule.halves) : part.copies.of(schedule.copies), source, sink(batch),
                      stream);
      }
      const auto task = first_task_[part.segments.first];
      tasks_.queue({task, first_task_[part.segments.end()] - task}, source, sink(batch), stream);
    }
    if (watched_) {
      arrivals_[index].record(stream);
    } else {
      announce(part, batch, stream);
    }
  }

  void announce(const Part& part, const Batch& batch, const gpu::Stream& stream) const {
    if (batch.gpu_observer != nullptr && !digests_copy(batch, part.from)) batch.gpu_observer->landed(stream, part);
  }

  /// Whether what is from that trainer rank is digested by the kernel that copies it: its tasks read a trainer rank's
  /// source, and who waits for parts, waits for all of each.
  bool digests_copy(const Batch& batch, std::size_t from) const {
    return batch.digests != nullptr && beside_[from] && upstream_.next() < 0 &&
           peers_->roster.trainer(upstream_.sender({from, {}}));
  }

  /// All that is so copied, in the order of the model: links begin elsewhere. Queued in pieces, so that whoever else
  /// uses the GPU gets in between.
  void copy_and_digest(const Batch& batch, const gpu::DigestTarget& digests) {
    const auto& schedule = upstream_.schedule();
    const auto here = [&](const Supply& supply) { return digests_copy(batch, supply.from); };
    if (std::ranges::none_of(schedule.supplies, here)) return;
    const gpu::Stream* const streams[] = {&beside_stream_, digests.stream};
    std::size_t kernels = 0;
    beside_stream_.after(*digests.stream);
    for (const auto& supply : schedule.supplies) {
      if (!here(supply)) continue;
      const auto segments = schedule.segments_of(supply.from, batch.parameters);
      const auto first = static_cast<std::size_t>(segments.data() - schedule.segments.data());
      const auto end = digests.first_task[first + segments.size()];
      for (auto begin = digests.first_task[first]; begin < end; begin += digests_at_once) {
        gpu::copy_and_digest(digests.tasks + begin, std::min(digests_at_once, end - begin),
                             {upstream_.base(batch, {supply.from, {}})}, sink(batch), digests.sums, share_,
                             *streams[kernels++ % 2]);
      }
    }
    beside_stream_.after(*digests.stream);
    digests.stream->after(beside_stream_);
  }

  static constexpr std::size_t everything = ~std::size_t{0};

  Upstream upstream_;
  std::vector<Push> pushes_;  // to those that receive from here across a link
  // On engines:
  Pushed pushed_;
  std::vector<bool> beside_;             // by trainer rank: what is from it comes from the same GPU
  gpu::Share share_ = gpu::Share::all;   // of the GPU for what is copied within it
  bool watched_ = false;                 // in this run somebody waits for the arrival of parts
  std::vector<bool> by_tasks_;           // by trainer rank: nothing of what is from it is left to copy engines
  CopyTasks tasks_;                      // of what is strided, or so left
  std::vector<std::size_t> first_task_;  // of each segment, and the end
  std::vector<gpu::Event> arrivals_;     // of parts, for when they are watched
  CopyBatch copies_;                     // of all else
  gpu::Stream stream_, beside_stream_;   // across links, and within the GPU
  gpu::Stream landed_;                   // nothing is queued on it: what is announced by it is there
};

}  // namespace

std::unique_ptr<Transport> make_direct_gpu() {
  return std::make_unique<DirectGpu>();
}

}  // namespace weightcast
