#include "weightcast/update/slot_delta.hpp"

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

Error damaged(std::string_view which) {
  return Error(ExitCode::mismatch, fmt::format("{} does not fit the plan: its table or its entries are damaged", which),
               "the link, a buffer or this host's memory is faulty; publish again: then all bytes are sent");
}

}  // namespace

SlotDelta::SlotDelta(const DeltaPlan& plan, ParameterStore& store, std::size_t tp_rank, Placement placement,
                     std::size_t parameter_count, bool shared)
    : store_(&store),
      receiver_(placement.kind == MemoryKind::host
                    ? make_host_delta_receiver(plan, tp_rank, store.slots().size(), parameter_count)
                    : make_gpu_delta_receiver(plan, tp_rank, store.slots().size(), placement.gpu, parameter_count)) {
  endpoints_.sinks = receiver_->inboxes();
  if (shared) endpoints_.shared_sinks = receiver_->share();
}

void SlotDelta::begin_base(std::size_t slot, const std::optional<std::uint64_t>& held) {
  const auto served = store_->served();
  from_kept_ = kept_ && held == kept_->base && served == kept_->version;
  const auto& to = store_->slots()[slot];
  if (from_kept_) {
    receiver_->begin(kept_->inbox_index, kept_->parts, false, to);
  } else {
    receiver_->begin_copy(store_->slots()[1 - slot], to);
  }
  kept_.reset();  // what it was for is no more
}

std::span<const Digest> SlotDelta::finish_base(Deadline deadline) {
  const auto changes = receiver_->finish(deadline);
  if (!from_kept_) return {};
  if (changes.empty()) throw damaged("the delta before, which was kept,");
  return changes;
}

std::span<const Digest> SlotDelta::apply(std::size_t slot, std::size_t parts, Deadline deadline) {
  parts_ = parts;
  const bool in_place = store_->mode() == CommitMode::in_place;
  receiver_->begin(inbox_index_, parts, in_place, store_->slots()[slot]);
  applied_ = in_place;
  const auto changes = receiver_->finish(deadline);
  if (!changes.empty()) return changes;
  applied_ = false;
  throw damaged("the delta that arrived");
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
