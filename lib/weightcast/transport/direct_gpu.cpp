#include <sched.h>

#include <algorithm>

#include "weightcast/transport/blocks.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// What one range of parameters needs: contiguous copies as parallel arrays, strided ones as tasks on the GPU.
struct Pull {
  Part parameters;
  std::vector<std::uint64_t> sources, destinations;
  std::vector<std::size_t> sizes;
  std::size_t first_task = 0, tasks = 0;
};

class DirectGpu final : public Transport {
 public:
  std::string_view name() const noexcept override { return "direct"; }

  std::optional<std::string> probe(const Peers& peers) const override {
    if (peers.placement.kind != MemoryKind::cuda) return "the weights are not in device memory";
    if (!peers.one_host) return "the ranks are on several hosts";
    if (gpu::count() == 0) return gpu::why_none();
    return std::nullopt;
  }

  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    upstream_.attach(peers, plan, endpoints, deadline);
    if (peers.trainer()) return;
    const auto gpu = peers.placement.gpu;
    stream_ = gpu::Stream(gpu);
    const auto& gpus = peers.gpus;
    beside_trainer_ = upstream_.rank() == 0 && !upstream_.announces() &&
                      gpus[0] == gpus[static_cast<std::size_t>(peers.group->rank())];
    std::vector<gpu::CopyTask> tasks;
    for (std::size_t p = 0; p < upstream_.shards().size(); ++p) single_.push_back(make_pull({p, 1}, tasks));
    std::size_t copies = 0;
    for (const auto& part : parts_of(plan, peers.tp_rank())) {
      whole_.push_back(make_pull(part, tasks));
      copies += whole_.back().sizes.size();
    }
    for (const auto& pull : single_) copies = std::max(copies, pull.sizes.size() * single_.size());
    from_.resize(copies);
    to_.resize(copies);
    if (upstream_.announces()) {
      for (std::size_t i = 0; i < std::max(single_.size(), whole_.size()); ++i) arrivals_.emplace_back(gpu);
    }
    tasks_ = Buffer::allocate(peers.placement, tasks.size() * sizeof(gpu::CopyTask), false, "the copy plan");
    if (!tasks.empty()) write_region(tasks_.region(), 0, std::as_bytes(std::span(tasks)));
  }

  void run(const Batch& batch, Deadline deadline) override {
    egress_bytes_ = 0;
    if (peers_->trainer()) {
      do_work(batch);
      egress_bytes_ = plan_->egress_bytes(batch.first_parameter, batch.parameters);
      return;
    }
    const std::byte* const source = upstream_.base(batch);
    if (beside_trainer_ && batch.witness != nullptr &&
        batch.witness->copy_on(stream_, source, batch.first_parameter, batch.parameters))
      return stream_.synchronize(deadline, "copying weights");
    std::byte* const sink = endpoints_->sinks.at(batch.sink).data;
    const bool all = batch.parameters == single_.size();
    const auto pulls = all ? std::span<const Pull>(whole_)
                           : std::span<const Pull>(single_).subspan(batch.first_parameter, batch.parameters);
    upstream_.begin(pulls.size());
    std::size_t queued = 0, announced = 0, used = 0;
    while (queued < pulls.size() || (upstream_.announces() && announced < queued)) {
      bool progress = false;
      for (; queued < pulls.size() && upstream_.ready(queued); ++queued, progress = true) {
        used = queue(pulls[queued], source, sink, used);
        if (upstream_.announces()) arrivals_[queued].record(stream_);
        if (batch.witness != nullptr)
          batch.witness->landed_on(stream_, pulls[queued].parameters.first, pulls[queued].parameters.count);
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

  Traffic traffic() const noexcept override { return {egress_bytes_, 0}; }

 private:
  Pull make_pull(Part parameters, std::vector<gpu::CopyTask>& tasks) const {
    Pull pull{.parameters = parameters, .sources = {}, .destinations = {}, .sizes = {}, .first_task = tasks.size()};
    const auto begin = upstream_.shards().begin() + static_cast<std::ptrdiff_t>(parameters.first);
    for (const auto& move : coalesce({begin, begin + static_cast<std::ptrdiff_t>(parameters.count)})) {
      if (!move.contiguous_source() || !move.contiguous_destination()) {
        add_copy_tasks(tasks, move);
        continue;
      }
      pull.sources.push_back(move.source);
      pull.destinations.push_back(move.destination);
      pull.sizes.push_back(move.size_bytes());
    }
    pull.tasks = tasks.size() - pull.first_task;
    return pull;
  }

  /// Queues one; its pointers stay in from_ and to_ until the stream is done. Returns how many are in use.
  std::size_t queue(const Pull& pull, const std::byte* source, std::byte* sink, std::size_t used) {
    for (std::size_t i = 0; i < pull.sizes.size(); ++i) {
      from_[used + i] = source + pull.sources[i];
      to_[used + i] = sink + pull.destinations[i];
    }
    gpu::copy_batch(to_.data() + used, from_.data() + used, pull.sizes.data(), pull.sizes.size(), stream_);
    gpu::copy_strided(reinterpret_cast<const gpu::CopyTask*>(tasks_.region().data) + pull.first_task, pull.tasks,
                      source, sink, stream_);
    return used + pull.sizes.size();
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  std::uint64_t egress_bytes_ = 0;
  Upstream upstream_;  // on engines, as are all below
  gpu::Stream stream_;
  bool beside_trainer_ = false;       // on its GPU, and no other replica waits
  std::vector<Pull> single_, whole_;  // by parameter; the whole model in parts
  std::vector<gpu::Event> arrivals_;  // of parts that are announced
  Buffer tasks_;
  std::vector<const void*> from_;
  std::vector<void*> to_;
};

}  // namespace

std::unique_ptr<Transport> make_direct_gpu() {
  return std::make_unique<DirectGpu>();
}

}  // namespace weightcast
