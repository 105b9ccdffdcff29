#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace weightcast {

/// A mutex that serves in the order of arrival: readers at full rate must not starve each other. Basic lockable.
class FairMutex {
 public:
  void lock() {
    std::unique_lock lock(mutex_);
    const auto ticket = arrived_++;
    changed_.wait(lock, [&] { return ticket == served_; });
  }
  void unlock() {
    {
      const std::scoped_lock lock(mutex_);
      ++served_;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t arrived_ = 0, served_ = 0;
};

}  // namespace weightcast
