#include <algorithm>

#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// The whole model is pulled in this many parts, so that each can be digested while the next one is under way.
constexpr std::uint64_t parts = 12;

/// What one range of parameters needs: contiguous copies as parallel arrays, strided ones as tasks on the GPU.
struct Part {
  std::size_t first = 0, count = 0;  // parameters
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
    sources_ = map_sources(peers, endpoints, deadline);
    if (peers.trainer()) return;
    stream_ = gpu::Stream(peers.placement.gpu);
    const auto& shards = plan.ranks[peers.tp_rank()].shards;
    const auto target = std::max<std::uint64_t>(plan.ranks[peers.tp_rank()].received_bytes / parts, 1);
    std::vector<gpu::CopyTask> tasks;
    std::uint64_t bytes = 0;
    for (std::size_t p = 0, first = 0; p < shards.size(); ++p) {
      single_.push_back(make_part(p, 1, tasks));
      bytes += shards[p].size_bytes();
      if (bytes < target && p + 1 < shards.size()) continue;
      whole_.push_back(make_part(first, p + 1 - first, tasks));
      first = p + 1;
      bytes = 0;
    }
    tasks_ = Buffer::allocate(peers.placement, tasks.size() * sizeof(gpu::CopyTask), false, "the copy plan");
    if (!tasks.empty()) write_region(tasks_.region(), 0, std::as_bytes(std::span(tasks)));
    std::size_t most = 0;
    for (const auto* list : {&single_, &whole_}) {
      for (const auto& part : *list) most = std::max(most, part.sizes.size());
    }
    from_.resize(most * whole_.size() + single_.size());
    to_.resize(from_.size());
  }

  void run(const Batch& batch, Deadline deadline) override {
    if (peers_->trainer()) {
      while (batch.witness != nullptr && batch.witness->work()) {
      }
      return;
    }
    const std::byte* const source = sources_.at(batch.source).bytes().data();
    std::byte* const sink = endpoints_->sinks.at(batch.sink).data;
    std::size_t used = 0;
    const bool all = batch.first_parameter == 0 && batch.parameters == single_.size();
    const auto list = all ? std::span<const Part>(whole_)
                          : std::span<const Part>(single_).subspan(batch.first_parameter, batch.parameters);
    for (const auto& part : list) {
      used = queue(part, source, sink, used);
      if (batch.witness != nullptr) batch.witness->landed_on(stream_, part.first, part.count);
    }
    stream_.synchronize(deadline, "pulling weights");
  }

  Traffic traffic() const noexcept override { return {peers_->trainer() ? peers_->dp * plan_->egress_bytes() : 0, 0}; }

 private:
  Part make_part(std::size_t first, std::size_t count, std::vector<gpu::CopyTask>& tasks) const {
    Part part{.first = first,
              .count = count,
              .sources = {},
              .destinations = {},
              .sizes = {},
              .first_task = tasks.size(),
              .tasks = 0};
    const auto& shards = plan_->ranks[peers_->tp_rank()].shards;
    for (const auto& move : coalesce({shards.begin() + static_cast<std::ptrdiff_t>(first),
                                      shards.begin() + static_cast<std::ptrdiff_t>(first + count)})) {
      if (move.size_bytes() == 0) continue;
      if (move.contiguous_source() && move.contiguous_destination()) {
        part.sources.push_back(move.source);
        part.destinations.push_back(move.destination);
        part.sizes.push_back(move.size_bytes());
        continue;
      }
      // About 256 KiB for each thread block.
      const auto step = std::max<std::uint64_t>(256 * 1024 / move.row_bytes, 1);
      for (std::uint64_t row = 0; row < move.rows; row += step) {
        tasks.push_back({move.source + row * move.source_pitch, move.destination + row * move.destination_pitch,
                         move.source_pitch, move.destination_pitch, move.row_bytes, std::min(step, move.rows - row)});
      }
    }
    part.tasks = tasks.size() - part.first_task;
    return part;
  }

  /// Queues a part; its pointers stay in from_ and to_ until the stream is done. Returns how many are in use.
  std::size_t queue(const Part& part, const std::byte* source, std::byte* sink, std::size_t used) {
    for (std::size_t i = 0; i < part.sizes.size(); ++i) {
      from_[used + i] = source + part.sources[i];
      to_[used + i] = sink + part.destinations[i];
    }
    gpu::copy_batch(to_.data() + used, from_.data() + used, part.sizes.data(), part.sizes.size(), stream_);
    gpu::copy_strided(reinterpret_cast<const gpu::CopyTask*>(tasks_.region().data) + part.first_task, part.tasks,
                      source, sink, stream_);
    return used + part.sizes.size();
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  std::vector<Mapping> sources_;  // on engines, as are all below
  gpu::Stream stream_;
  std::vector<Part> single_, whole_;  // by parameter; the whole model in parts
  Buffer tasks_;
  std::vector<const void*> from_;
  std::vector<void*> to_;
};

}  // namespace

std::unique_ptr<Transport> make_direct_gpu() {
  return std::make_unique<DirectGpu>();
}

}  // namespace weightcast
