#include "weightcast/update/slot_delta.hpp"

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

Error damaged(std::string_view which) {
  return Error(ExitCode::mismatch, fmt::format("{} does not fit the plan: its table or its entries are damaged", which),
               "the link, a buffer or this host's memory is faulty; publish again: then all bytes are sent");
}

/// Two deltas applied, or the slot made anew in one pass? On an H200 a changed unit costs 40 ps each time, a byte of
/// the slot 0.52 ps: 8.4 ms for 16 GB, whatever changed.
constexpr std::uint64_t bytes_per_entry = 77;

}  // namespace

SlotDelta::SlotDelta(const DeltaPlan& plan, ParameterStore& store, std::size_t tp_rank, Placement placement,
                     std::size_t parameter_count, bool shared, bool digests)
    : store_(&store),
      receiver_(
          placement.kind == MemoryKind::host
              ? make_host_delta_receiver(plan, tp_rank, store.slots().size(), parameter_count)
              : make_gpu_delta_receiver(plan, tp_rank, store.slots().size(), placement.gpu, parameter_count, digests)) {
  endpoints_.sinks = receiver_->inboxes();
  if (shared) endpoints_.shared_sinks = receiver_->share();
}

void SlotDelta::begin(std::size_t slot, const std::optional<std::uint64_t>& held, std::size_t parts) {
  const auto served = store_->served();
  const auto &base = store_->slots()[1 - slot], &to = store_->slots()[slot];
  following_ = receiver_->follows();
  from_kept_ = kept_ && held == kept_->base && served == kept_->version;
  if (following_ && from_kept_)
    from_kept_ = (receiver_->room(kept_->parts) + receiver_->room(parts)) * bytes_per_entry < to.size_bytes;
  whole_ = following_ && !from_kept_;
  if (from_kept_) {
    receiver_->begin(kept_->inbox_index, kept_->parts, false, to);
  } else if (!following_) {
    receiver_->begin_copy(base, to);
  }
  if (following_) receiver_->follow(inbox_index_, parts, whole_ ? base.data : nullptr, to);
  kept_.reset();  // what it was for is no more
}

void SlotDelta::watch(Batch& batch) noexcept {
  if (following_) batch.gpu_observer = this;
}

void SlotDelta::landed(const gpu::Stream& stream, const Part& part) noexcept {
  if (part.segments.count != 0) receiver_->landed(stream, part.from, part.parameters.first);
}

void SlotDelta::check(std::size_t parts, Deadline deadline) {
  following_ = false;
  fits_ = receiver_->check(inbox_index_, parts, deadline);
}

std::span<const Digest> SlotDelta::finish_base(Deadline deadline) {
  if (whole_) return {};
  const auto changes = receiver_->finish(deadline);
  if (!from_kept_) return {};
  if (changes.empty()) throw damaged("the delta before, which was kept,");
  return changes;
}

SlotDelta::Applied SlotDelta::apply(std::size_t slot, std::size_t parts, Deadline deadline) {
  parts_ = parts;
  Applied applied;
  if (following_) {
    applied = {whole_, receiver_->finish_following(deadline)};
  } else if (fits_) {
    const bool in_place = store_->mode() == CommitMode::in_place;
    receiver_->begin(inbox_index_, parts, in_place, store_->slots()[slot]);
    applied_ = in_place;
    applied.digests = receiver_->finish(deadline);
  }
  if (!applied.digests.empty()) return applied;
  applied_ = false;
  throw damaged("the delta that arrived");
}

void SlotDelta::drop(Deadline deadline) noexcept {
  receiver_->settle(deadline);
}

void SlotDelta::commit(std::uint64_t base, std::uint64_t version) {
  applied_ = false;
  if (store_->mode() == CommitMode::in_place) return;
  kept_ = {base, version, inbox_index_, parts_};
  inbox_index_ = 1 - inbox_index_;
}

bool SlotDelta::undo(std::size_t slot, Deadline deadline) noexcept {
  if (!applied_) return true;
  applied_ = false;
  try {
    receiver_->begin(inbox_index_, parts_, true, store_->slots()[slot]);
    return !receiver_->finish(deadline).empty();
  } catch (...) {
    return false;
  }
}

}  // namespace weightcast
