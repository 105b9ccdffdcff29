#include <cstring>

#include "weightcast/delta/delta_receiver.hpp"
#include "weightcast/delta/stream_runs.hpp"

namespace weightcast {
namespace {

class GpuDeltaReceiver final : public DeltaReceiver {
 public:
  GpuDeltaReceiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count, int gpu,
                   std::size_t parameter_count)
      : DeltaReceiver(plan, tp_rank, inbox_count, {MemoryKind::cuda, gpu}, parameter_count), stream_(gpu) {
    for (const auto& stream : streams_) runs_.emplace_back(stream, gpu);
    results_ = Buffer::allocate({MemoryKind::cuda, gpu}, results_bytes(), false, "digests of deltas");
    fetched_ = Staging(results_.region(), results_bytes());
  }

  void begin(std::size_t inbox_index, std::size_t parts, bool swap, const Region& slot) override {
    auto* const results = results_.region().data;
    auto* const bad = reinterpret_cast<std::uint32_t*>(results + digests_bytes());
    gpu::zero(results, results_bytes(), stream_);
    const auto stream_of = [&](const StreamRuns& runs) { return arrived(runs.stream(), inbox_index, parts); };
    for (const auto& runs : runs_) {
      const auto [stream, data, capacity] = stream_of(runs);
      gpu::check_delta(runs.on_gpu(), reinterpret_cast<const std::uint64_t*>(data),
                       reinterpret_cast<const DeltaEntry*>(data + stream->starts_bytes()), capacity, bad, stream_);
    }
    for (const auto& runs : runs_) {
      const auto [stream, data, capacity] = stream_of(runs);
      gpu::apply_delta(runs.on_gpu(), reinterpret_cast<const std::uint64_t*>(data),
                       reinterpret_cast<DeltaEntry*>(data + stream->starts_bytes()), swap, slot.data,
                       reinterpret_cast<std::uint64_t*>(results), bad, stream_);
    }
    gpu::fetch(fetched_.first(results_bytes()).data(), results, results_bytes(), stream_);
  }
  std::span<const Digest> finish(Deadline deadline) override {
    stream_.synchronize(deadline, "applying a delta");
    const auto* const fetched = fetched_.first(results_bytes()).data();
    std::memcpy(changes_.data(), fetched, digests_bytes());
    std::uint32_t bad = 0;
    std::memcpy(&bad, fetched + digests_bytes(), sizeof(bad));
    return std::span(changes_).first(bad == 0 ? changes_.size() : 0);
  }
  void begin_copy(const Region& from, const Region& to) override {
    gpu::copy(to.data, from.data, from.size_bytes, stream_);
  }

 private:
  std::uint64_t digests_bytes() const noexcept { return changes_.size() * sizeof(Digest); }
  /// With what check_delta() says.
  std::uint64_t results_bytes() const noexcept { return digests_bytes() + sizeof(std::uint64_t); }

  std::vector<StreamRuns> runs_;
  Buffer results_;
  Staging fetched_;
  gpu::Stream stream_;
};

}  // namespace

std::unique_ptr<DeltaReceiver> make_gpu_delta_receiver(const DeltaPlan& plan, std::size_t tp_rank,
                                                       std::size_t inbox_count, int gpu, std::size_t parameter_count) {
  return std::make_unique<GpuDeltaReceiver>(plan, tp_rank, inbox_count, gpu, parameter_count);
}

}  // namespace weightcast
