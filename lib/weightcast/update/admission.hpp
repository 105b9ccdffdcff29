#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

#include "weightcast/core/error.hpp"

namespace weightcast {

/// Stands for "whatever version the trainer publishes next".
inline constexpr std::uint64_t any_version = 0;

/// Lets one update in at a time; a second one is refused at once and never queued. Thread-safe, local.
class Admission {
 public:
  /// Being inside; ends with the scope.
  class Ticket {
   public:
    explicit Ticket(Admission& admission) noexcept : admission_(&admission) {}
    Ticket(Ticket&&) = delete;
    ~Ticket() {
      const std::scoped_lock lock(admission_->mutex_);
      admission_->inside_.reset();
    }
    /// The version of this update, when it was any_version at first.
    void learn(std::uint64_t version) {
      const std::scoped_lock lock(admission_->mutex_);
      admission_->inside_ = version;
    }

   private:
    Admission* admission_;
  };

  /// Error(busy) naming both versions while somebody is inside.
  Ticket enter(std::uint64_t version) {
    const std::scoped_lock lock(mutex_);
    if (inside_) {
      throw Error(ExitCode::busy,
                  fmt::format("{} is being updated: {} must wait", describe(*inside_), describe(version)),
                  "try again when the first update has ended");
    }
    inside_ = version;
    return Ticket(*this);
  }

 private:
  static std::string describe(std::uint64_t version) {
    return version == any_version ? "a version that the trainer has not named yet" : fmt::format("version {}", version);
  }

  std::mutex mutex_;
  std::optional<std::uint64_t> inside_;
};

}  // namespace weightcast
