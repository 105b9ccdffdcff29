#include "weightcast/store/parameter_store.hpp"

#include <utility>

#include "weightcast/core/error.hpp"
#include "weightcast/core/expects.hpp"

namespace weightcast {

std::string_view name(CommitMode mode) noexcept {
  return mode == CommitMode::swap ? "swap" : "in-place";
}

ParameterStore::ParameterStore(const TransferPlan& plan, CommitMode mode, Placement placement) : mode_(mode) {
  for (std::size_t i = 0; i < (mode == CommitMode::swap ? 2u : 1u); ++i) {
    slots_.push_back(
        {Buffer::allocate(placement, plan.slot_bytes, false, fmt::format("slot {} of an engine rank", i)), {}, 0});
    regions_.push_back(slots_.back().buffer.region());
  }
}

ParameterStore::Pin::Pin(Pin&& other) noexcept : store_(std::exchange(other.store_, nullptr)), slot_(other.slot_) {}

ParameterStore::Pin::~Pin() {
  if (store_ == nullptr) return;
  const std::scoped_lock lock(store_->mutex_);
  if (--store_->slots_[slot_].pins == 0) store_->unpinned_.notify_all();
}

const HeldVersion& ParameterStore::Pin::version() const noexcept {
  return store_->slots_[slot_].version;
}

Region ParameterStore::Pin::slot() const noexcept {
  return store_->regions_[slot_];
}

ParameterStore::Pin ParameterStore::pin() {
  const std::scoped_lock lock(mutex_);
  if (dirty_)
    throw Error(ExitCode::busy, "the engine is dirty: an in-place update failed or is under way", "send a full update");
  if (!served_) throw Error(ExitCode::busy, "the engine serves no version yet", "load or send weights first");
  ++slots_[*served_].pins;
  return Pin(this, *served_);
}

std::size_t ParameterStore::stage(Deadline deadline) {
  std::unique_lock lock(mutex_);
  WEIGHTCAST_EXPECTS(!staged_);
  const std::size_t spare = mode_ == CommitMode::swap && served_ ? 1 - *served_ : 0;
  const bool was_dirty = dirty_;
  if (mode_ == CommitMode::in_place) dirty_ = true;  // no new pins, so that the old ones run out
  const auto limit = Deadline::Clock::now() + std::chrono::duration<double>(deadline.remaining_s());
  const bool free = unpinned_.wait_until(lock, std::chrono::time_point_cast<Deadline::Clock::duration>(limit),
                                         [&] { return slots_[spare].pins == 0; });
  if (!free) {
    dirty_ = was_dirty;  // nothing was written yet
    throw Error(ExitCode::deadline,
                fmt::format("version {} is still read by {} requests", slots_[spare].version.id, slots_[spare].pins),
                "end the requests that hold it, or raise --timeout");
  }
  staged_ = spare;
  return spare;
}

void ParameterStore::publish(HeldVersion version) {
  const std::scoped_lock lock(mutex_);
  WEIGHTCAST_EXPECTS(staged_);
  slots_[*staged_].version = std::move(version);
  served_ = std::exchange(staged_, std::nullopt);
  dirty_ = false;
}

void ParameterStore::drop() noexcept {
  const std::scoped_lock lock(mutex_);
  staged_.reset();
}

std::optional<std::uint64_t> ParameterStore::served() const {
  const std::scoped_lock lock(mutex_);
  if (dirty_ || !served_) return std::nullopt;
  return slots_[*served_].version.id;
}

bool ParameterStore::dirty() const {
  const std::scoped_lock lock(mutex_);
  return dirty_;
}

}  // namespace weightcast
