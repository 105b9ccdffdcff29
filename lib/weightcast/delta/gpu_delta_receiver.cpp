#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/delta/delta_receiver.hpp"
#include "weightcast/delta/stream_runs.hpp"

namespace weightcast {
namespace {

/// What is worth a kernel while more arrives: so many entries, or a quarter of all.
constexpr std::uint64_t entries_at_once = 16 * mebibyte / sizeof(DeltaEntry);

class GpuDeltaReceiver final : public DeltaReceiver {
 public:
  GpuDeltaReceiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count, int gpu,
                   std::size_t parameter_count, bool digests)
      : DeltaReceiver(plan, tp_rank, inbox_count, {MemoryKind::cuda, gpu}, parameter_count),
        digests_(digests),
        progress_(streams_.size()),
        stream_(gpu) {
    for (const auto& stream : streams_) runs_.emplace_back(stream, gpu);
    const auto size = 2 * results_bytes() + 2 * sizeof(std::uint64_t);
    results_ = Buffer::allocate({MemoryKind::cuda, gpu}, size, false, "digests of deltas");
    fetched_ = Staging(results_.region(), 2 * results_bytes());
  }

  bool check(std::size_t inbox_index, std::size_t parts, Deadline deadline) override {
    clear(begun);
    queue_check(inbox_index, parts);
    fetch(begun);
    return checked_ = !finish(deadline).empty();
  }
  void begin(std::size_t inbox_index, std::size_t parts, bool swap, const Region& slot) override {
    clear(begun);
    const bool checked = std::exchange(checked_, false);
    if (swap && !checked) queue_check(inbox_index, parts);
    for (const auto& runs : runs_) {
      const auto [stream, data, capacity] = arrived(runs.stream(), inbox_index, parts);
      if (swap) {
        gpu::apply_delta(runs.on_gpu(), starts(data), entries(*stream, data), true, slot.data, sums(begun), bad(begun),
                         stream_);
      } else {
        gpu::check_starts(runs.on_gpu(), starts(data), capacity, bad(begun), stream_);
        gpu::apply_piece(
            {runs.on_gpu(), starts(data), entries(*stream, data), 0, gpu::every_entry, stream->block_count, found()},
            slot.data, sums(begun), bad(begun), stream_);
      }
    }
    fetch(begun);
  }
  void begin_copy(const Region& from, const Region& to) override {
    gpu::copy(to.data, from.data, from.size_bytes, stream_);
  }
  std::span<const Digest> finish(Deadline deadline) override { return wait(begun, deadline); }

  bool follows() const noexcept override { return true; }
  void follow(std::size_t inbox_index, std::size_t parts, const std::byte* base, const Region& slot) override {
    inbox_index_ = inbox_index;
    parts_ = parts;
    base_ = base;
    slot_ = slot.data;
    left_ = streams_.size();
    error_ = nullptr;
    std::ranges::fill(progress_, Progress{});
    clear(followed);
  }
  void landed(const gpu::Stream& stream, std::size_t from, std::size_t part) noexcept override {
    try {
      stream_.after(stream);
      for (std::size_t i = 0; i < streams_.size(); ++i) {
        const auto& ends = streams_[i].part_ends;
        // What is not announced in order is left to the end.
        if (streams_[i].from == from && progress_[i].bytes == (part == 0 ? 0 : ends[part - 1])) advance(i, ends[part]);
      }
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  std::span<const Digest> finish_following(Deadline deadline) override {
    if (error_) std::rethrow_exception(error_);
    for (std::size_t i = 0; i < streams_.size(); ++i) {
      if (progress_[i].entries != gpu::every_entry) advance(i, streams_[i].part_ends[parts_ - 1]);
    }
    return wait(followed, deadline);
  }
  void settle(Deadline deadline) noexcept override {
    try {
      stream_.synchronize(deadline, "applying a delta");
    } catch (...) {  // NOLINT(bugprone-empty-catch): what comes next is queued behind it
    }
  }

 private:
  /// Of one stream: bytes that are there, entries whose blocks are queued.
  struct Progress {
    std::uint64_t bytes = 0, entries = 0;
  };

  /// So many bytes of a stream are there now: queues blocks that are complete, once they are worth it.
  void advance(std::size_t i, std::uint64_t bytes) {
    auto& progress = progress_[i];
    const auto [stream, data, capacity] = arrived(streams_[i], inbox_index_, parts_);
    // All starts are in the first part.
    if (progress.bytes == 0) gpu::check_starts(runs_[i].on_gpu(), starts(data), capacity, bad(followed), stream_);
    progress.bytes = bytes;
    const bool last = bytes == stream->part_ends[parts_ - 1];
    const auto there = (bytes - stream->starts_bytes()) / sizeof(DeltaEntry);
    if (!last && there - progress.entries < std::min(entries_at_once, capacity / 4 + 1)) return;
    // As if changes lay evenly, and an eighth more, because the last part may not be full.
    const auto share = static_cast<double>((last ? capacity : there) - progress.entries) /
                       static_cast<double>(std::max<std::uint64_t>(capacity, 1));
    const auto blocks = last && progress.entries == 0
                            ? stream->block_count
                            : static_cast<std::uint64_t>(1.125 * share * static_cast<double>(stream->block_count));
    const gpu::DeltaPiece piece{runs_[i].on_gpu(),
                                starts(data),
                                entries(*stream, data),
                                progress.entries,
                                last ? gpu::every_entry : there,
                                blocks,
                                found()};
    if (base_ == nullptr) {
      gpu::apply_piece(piece, slot_, sums(followed), bad(followed), stream_);
    } else {
      gpu::patch_and_digest(piece, base_, slot_, sums(followed), bad(followed), stream_);
    }
    progress.entries = piece.last;
    if (last && --left_ == 0) fetch(followed);  // while the ranks agree on STAGE
  }
  void queue_check(std::size_t inbox_index, std::size_t parts) {
    for (const auto& runs : runs_) {
      const auto [stream, data, capacity] = arrived(runs.stream(), inbox_index, parts);
      gpu::check_delta(runs.on_gpu(), starts(data), entries(*stream, data), capacity, bad(begun), stream_);
    }
  }
  static const std::uint64_t* starts(std::byte* data) noexcept { return reinterpret_cast<const std::uint64_t*>(data); }
  static DeltaEntry* entries(const DeltaStream& stream, std::byte* data) noexcept {
    return reinterpret_cast<DeltaEntry*>(data + stream.starts_bytes());
  }

  /// There are two results, of what was begun and of what followed: digests, and what checks say.
  enum Result : std::uint8_t { begun, followed };
  std::uint64_t digests_bytes() const noexcept { return changes_.size() * sizeof(Digest); }
  std::uint64_t results_bytes() const noexcept { return digests_bytes() + sizeof(std::uint64_t); }
  std::byte* result(Result which) const noexcept { return results_.region().data + which * results_bytes(); }
  std::uint64_t* sums(Result which) const noexcept {
    return digests_ ? reinterpret_cast<std::uint64_t*>(result(which)) : nullptr;
  }
  std::uint32_t* bad(Result which) const noexcept {
    return reinterpret_cast<std::uint32_t*>(result(which) + digests_bytes());
  }
  /// What pieces are found by.
  std::uint64_t* found() const noexcept {
    return reinterpret_cast<std::uint64_t*>(results_.region().data + 2 * results_bytes());
  }
  std::byte* fetched(Result which) { return fetched_.first(2 * results_bytes()).data() + which * results_bytes(); }
  void clear(Result which) { gpu::zero(result(which), results_bytes(), stream_); }
  void fetch(Result which) { gpu::fetch(fetched(which), result(which), results_bytes(), stream_); }
  std::span<const Digest> wait(Result which, Deadline deadline) {
    stream_.synchronize(deadline, "applying a delta");
    const auto* const fetched = this->fetched(which);
    std::memcpy(changes_.data(), fetched, digests_bytes());
    std::uint32_t bad = 0;
    std::memcpy(&bad, fetched + digests_bytes(), sizeof(bad));
    return std::span(changes_).first(bad == 0 ? changes_.size() : 0);
  }

  bool digests_;
  std::vector<StreamRuns> runs_;
  bool checked_ = false;  // what begin() is to apply
  // What is followed:
  std::size_t inbox_index_ = 0, parts_ = 0;
  const std::byte* base_ = nullptr;
  std::byte* slot_ = nullptr;
  std::vector<Progress> progress_;  // by stream
  std::size_t left_ = 0;            // streams that are not all there
  std::exception_ptr error_;        // of landed(), which may not throw
  Buffer results_;
  Staging fetched_;
  gpu::Stream stream_;
};

}  // namespace

std::unique_ptr<DeltaReceiver> make_gpu_delta_receiver(const DeltaPlan& plan, std::size_t tp_rank,
                                                       std::size_t inbox_count, int gpu, std::size_t parameter_count,
                                                       bool digests) {
  return std::make_unique<GpuDeltaReceiver>(plan, tp_rank, inbox_count, gpu, parameter_count, digests);
}

}  // namespace weightcast
