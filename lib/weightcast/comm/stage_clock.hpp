#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "weightcast/core/deadline.hpp"

namespace weightcast {

/// What this rank is in the middle of, and until when it has to be over: for a program that watches over those few MPI
/// calls which cannot be given up (splitting a communicator, making a shared window, collective files, MPI_Finalize).
/// Communicators that have one note their stages on it. Thread-safe; allocates nothing.
class StageClock {
 public:
  /// Notes a stage for as long as it lives; one inside of another counts as part of it.
  class Note {
   public:
    Note(StageClock* clock, std::string_view stage, Deadline deadline);
    Note(Note&&) = delete;
    ~Note();

   private:
    StageClock* clock_;
  };

  /// The stage that should have been over `seconds` ago and is not.
  std::optional<std::string> overdue(double seconds) const;

 private:
  mutable std::mutex mutex_;
  std::size_t depth_ = 0;
  char stage_[32] = {};
  Deadline deadline_{Deadline::Clock::time_point::max()};
};

}  // namespace weightcast
