#include "weightcast/delta/delta_receiver.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/delta/host_delta.hpp"
#include "weightcast/delta/stream_runs.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t blocks_at_once = 64;
constexpr std::uint64_t copied_at_once = 4 * mebibyte;

class HostDeltaReceiver final : public DeltaReceiver {
 public:
  HostDeltaReceiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count, std::size_t parameter_count)
      : DeltaReceiver(plan, tp_rank, inbox_count, MemoryKind::host, parameter_count), workers_(available_cores() - 1) {}

  void begin(std::size_t inbox_index, std::size_t parts, bool swap, const Region& slot) override {
    std::ranges::fill(changes_, Digest{});
    fits_ = true;
    for (const auto& stream : streams_) {
      for_each_range(stream.block_count, blocks_at_once, [&](std::uint64_t first, std::uint64_t last) {
        if (!good_blocks(view(stream, inbox_index, parts), first, last)) fits_ = false;
      });
    }
    for (const auto& stream : streams_) {
      if (!fits_) break;
      for_each_range(stream.block_count, blocks_at_once, [&](std::uint64_t first, std::uint64_t last) {
        apply_blocks(view(stream, inbox_index, parts), first, last, swap, slot.data,
                     [&](std::uint64_t parameter_index, const Digest& change) {
                       std::atomic_ref(changes_[parameter_index].first) += change.first;
                       std::atomic_ref(changes_[parameter_index].second) += change.second;
                     });
      });
    }
  }
  std::span<const Digest> finish(Deadline) override { return std::span(changes_).first(fits_ ? changes_.size() : 0); }
  void begin_copy(const Region& from, const Region& to) override {
    for_each_range(from.size_bytes, copied_at_once, [&](std::uint64_t first, std::uint64_t last) {
      std::memcpy(to.data + first, from.data + first, last - first);
    });
  }

 private:
  StreamView view(const DeltaStream& stream, std::size_t inbox_index, std::size_t parts) const noexcept {
    const auto [of, data, capacity] = arrived(stream, inbox_index, parts);
    return {of->runs, of->block_count, reinterpret_cast<const std::uint64_t*>(data),
            reinterpret_cast<DeltaEntry*>(data + of->starts_bytes()), capacity};
  }
  template <typename Work>
  void for_each_range(std::uint64_t count, std::uint64_t step, const Work& work) {
    std::atomic<std::uint64_t> next{0};
    workers_.run([&] {
      for (auto first = next.fetch_add(step); first < count; first = next.fetch_add(step))
        work(first, std::min(first + step, count));
    });
  }

  std::atomic<bool> fits_ = true;
  Workers workers_;
};

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

DeltaReceiver::DeltaReceiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count, Placement placement,
                             std::size_t parameter_count)
    : changes_(parameter_count) {
  const auto [first, last] = std::ranges::equal_range(plan.streams, tp_rank, {}, &DeltaStream::tp_rank);
  streams_ = {first, last};
  for (std::size_t i = 0; i < inbox_count; ++i) {
    inboxes_.push_back(
        Buffer::allocate(placement, plan.inbox_bytes(), plan.movement.dp > 1, "deltas that arrive (--delta-limit)"));
  }
}

DeltaReceiver::Arrived DeltaReceiver::arrived(const DeltaStream& stream, std::size_t inbox_index,
                                              std::size_t parts) const noexcept {
  const auto bytes = stream.part_ends[parts - 1] - stream.starts_bytes();
  return {&stream, inboxes_[inbox_index].region().data + stream.inbox_offset, bytes / sizeof(DeltaEntry)};
}

std::vector<Region> DeltaReceiver::inboxes() const {
  std::vector<Region> regions;
  for (const auto& inbox : inboxes_) regions.push_back(inbox.region());
  return regions;
}

std::vector<ShareHandle> DeltaReceiver::share() const {
  std::vector<ShareHandle> handles;
  for (const auto& inbox : inboxes_) handles.push_back(inbox.share());
  return handles;
}

std::unique_ptr<DeltaReceiver> make_delta_receiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count,
                                                   Placement placement, std::size_t parameter_count) {
  if (placement.kind == MemoryKind::host)
    return std::make_unique<HostDeltaReceiver>(plan, tp_rank, inbox_count, parameter_count);
  return std::make_unique<GpuDeltaReceiver>(plan, tp_rank, inbox_count, placement.gpu, parameter_count);
}

}  // namespace weightcast
