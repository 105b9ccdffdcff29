#include <algorithm>
#include <atomic>
#include <cstring>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/delta/delta_receiver.hpp"
#include "weightcast/delta/host_delta.hpp"

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
      workers_.run_ranges(stream.block_count, blocks_at_once, [&](std::uint64_t first, std::uint64_t last) {
        if (!good_blocks(view(stream, inbox_index, parts), first, last)) fits_ = false;
      });
    }
    for (const auto& stream : streams_) {
      if (!fits_) break;
      workers_.run_ranges(stream.block_count, blocks_at_once, [&](std::uint64_t first, std::uint64_t last) {
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
    workers_.run_ranges(from.size_bytes, copied_at_once, [&](std::uint64_t first, std::uint64_t last) {
      std::memcpy(to.data + first, from.data + first, last - first);
    });
  }

 private:
  StreamView view(const DeltaStream& stream, std::size_t inbox_index, std::size_t parts) const noexcept {
    const auto [of, data, capacity] = arrived(stream, inbox_index, parts);
    return {of->runs, of->block_count, reinterpret_cast<const std::uint64_t*>(data),
            reinterpret_cast<DeltaEntry*>(data + of->starts_bytes()), capacity};
  }

  std::atomic<bool> fits_ = true;
  Workers workers_;
};

}  // namespace

std::unique_ptr<DeltaReceiver> make_host_delta_receiver(const DeltaPlan& plan, std::size_t tp_rank,
                                                        std::size_t inbox_count, std::size_t parameter_count) {
  return std::make_unique<HostDeltaReceiver>(plan, tp_rank, inbox_count, parameter_count);
}

}  // namespace weightcast
