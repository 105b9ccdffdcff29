#include "weightcast/comm/stage_clock.hpp"

#include <algorithm>

namespace weightcast {

StageClock::Note::Note(StageClock* clock, std::string_view stage, Deadline deadline) : clock_(clock) {
  if (clock_ == nullptr) return;
  const std::scoped_lock lock(clock_->mutex_);
  if (clock_->depth_++ != 0) return;
  const auto size = std::min(stage.size(), sizeof clock_->stage_ - 1);
  *std::copy_n(stage.begin(), size, clock_->stage_) = '\0';
  clock_->deadline_ = deadline;
}

StageClock::Note::~Note() {
  if (clock_ == nullptr) return;
  const std::scoped_lock lock(clock_->mutex_);
  --clock_->depth_;
}

std::optional<std::string> StageClock::overdue(double seconds) const {
  const std::scoped_lock lock(mutex_);
  if (depth_ == 0 || !deadline_.plus(seconds).passed()) return std::nullopt;
  return stage_;
}

}  // namespace weightcast
