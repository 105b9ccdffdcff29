#include "weightcast/store/parameter_store.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "weightcast/core/error.hpp"

namespace weightcast {

std::string_view name(CommitMode mode) noexcept {
  return mode == CommitMode::swap ? "swap" : "in-place";
}

ParameterStore::ParameterStore(const TransferPlan& plan, CommitMode mode, Placement placement) : mode_(mode) {
  for (std::size_t i = 0; i < (mode == CommitMode::swap ? 2u : 1u); ++i) {
    slots_.push_back(
        {Buffer::allocate(placement, plan.slot_bytes, plan.dp > 1, fmt::format("slot {} of an engine rank", i)),
         {},
         {}});
    regions_.push_back(slots_.back().buffer.region());
  }
}

std::vector<ShareHandle> ParameterStore::share() const {
  std::vector<ShareHandle> handles;
  for (const auto& slot : slots_) handles.push_back(slot.buffer.share());
  return handles;
}

ParameterStore::Pin::Pin(Pin&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), slot_(other.slot_), holder_(other.holder_) {}

ParameterStore::Pin::~Pin() {
  if (store_ == nullptr) return;
  const std::scoped_lock lock(store_->mutex_);
  auto& holders = store_->slots_[slot_].holders;
  holders.erase(holder_);
  if (holders.empty()) store_->changed_.notify_all();
}

const HeldVersion& ParameterStore::Pin::version() const noexcept {
  return *store_->slots_[slot_].version;
}

Region ParameterStore::Pin::slot() const noexcept {
  return store_->regions_[slot_];
}

ParameterStore::Pin ParameterStore::pin_slot(std::size_t slot, std::string holder) {
  auto& holders = slots_[slot].holders;
  return Pin(this, slot, holders.insert(holders.end(), std::move(holder)));
}

ParameterStore::Pin ParameterStore::pin(std::string holder) {
  const std::scoped_lock lock(mutex_);
  if (dirty_)
    throw Error(ExitCode::busy, "the engine is dirty: an in-place update failed or is under way", "send a full update");
  if (!served_) throw Error(ExitCode::busy, "the engine serves no version yet", "load or send weights first");
  return pin_slot(*served_, std::move(holder));
}

ParameterStore::Pin ParameterStore::pin(std::uint64_t version, Deadline deadline, std::string holder) {
  std::unique_lock lock(mutex_);
  std::optional<std::size_t> slot;
  if (!changed_.wait_until(lock, deadline.at(), [&] { return (slot = find(version)).has_value(); })) {
    std::vector<std::uint64_t> held;
    for (const auto& other : slots_) {
      if (other.version) held.push_back(other.version->id);
    }
    fail(ExitCode::deadline, "version {} is not here: held are [{}]", version, fmt::join(held, ", "));
  }
  return pin_slot(*slot, std::move(holder));
}

std::optional<std::size_t> ParameterStore::find(std::uint64_t version) const noexcept {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].version && slots_[i].version->id == version) return i;
  }
  return std::nullopt;
}

std::size_t ParameterStore::reserve(Deadline deadline) {
  std::unique_lock lock(mutex_);
  WEIGHTCAST_EXPECTS(!reserved_);
  const std::size_t spare = mode_ == CommitMode::swap && served_ ? 1 - *served_ : 0;
  const auto& slot = slots_[spare];
  const bool was_dirty = dirty_;
  if (mode_ == CommitMode::in_place) dirty_ = true;  // no new pins, so that the old ones run out
  if (!changed_.wait_until(lock, deadline.at(), [&] { return slot.holders.empty(); })) {
    dirty_ = was_dirty;  // nothing was written yet
    const auto named = std::min<std::size_t>(slot.holders.size(), 3);
    const std::vector<std::string> first(slot.holders.begin(),
                                         std::next(slot.holders.begin(), static_cast<int>(named)));
    throw Error(ExitCode::deadline,
                fmt::format("version {} is still read by {} requests: {}{}", slot.version->id, slot.holders.size(),
                            fmt::join(first, ", "), named < slot.holders.size() ? ", ..." : ""),
                "end the requests that hold it, or raise --timeout");
  }
  reserved_ = spare;
  return spare;
}

void ParameterStore::overwrite() noexcept {
  const std::scoped_lock lock(mutex_);
  if (reserved_) slots_[*reserved_].version.reset();
}

std::size_t ParameterStore::stage(Deadline deadline) {
  const auto slot = reserve(deadline);
  overwrite();
  return slot;
}

void ParameterStore::publish(const HeldVersion& version) {
  const std::scoped_lock lock(mutex_);
  if (!reserved_) fail(ExitCode::internal, "publish() of version {} without stage()", version.id);
  slots_[*reserved_].version = version;
  served_ = std::exchange(reserved_, std::nullopt);
  dirty_ = false;
  changed_.notify_all();
}

void ParameterStore::drop() noexcept {
  const std::scoped_lock lock(mutex_);
  if (reserved_ && mode_ == CommitMode::in_place && slots_[*reserved_].version) dirty_ = false;
  reserved_.reset();
}

void ParameterStore::restore(const HeldVersion& version) noexcept {
  const std::scoped_lock lock(mutex_);
  if (!reserved_) return;
  slots_[*reserved_].version = version;
  reserved_.reset();
  dirty_ = false;
  changed_.notify_all();
}

std::optional<std::size_t> ParameterStore::slot_of(std::uint64_t version) const {
  const std::scoped_lock lock(mutex_);
  return find(version);
}

std::optional<HeldVersion> ParameterStore::held(std::size_t slot) const {
  const std::scoped_lock lock(mutex_);
  return slots_[slot].version;
}

void ParameterStore::roll_back(std::uint64_t version) {
  const std::scoped_lock lock(mutex_);
  const auto slot = find(version);
  if (!slot || reserved_) fail(ExitCode::internal, "roll_back() to version {}, which is not held", version);
  served_ = slot;
}

std::optional<std::uint64_t> ParameterStore::served() const {
  const std::scoped_lock lock(mutex_);
  if (dirty_ || !served_) return std::nullopt;
  return slots_[*served_].version->id;
}

bool ParameterStore::dirty() const {
  const std::scoped_lock lock(mutex_);
  return dirty_;
}

}  // namespace weightcast
