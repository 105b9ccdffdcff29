#include "weightcast/trainer/fill_threads.hpp"

#include <atomic>
#include <exception>
#include <mutex>

namespace weightcast {

void FillThreads::run(std::size_t count, FunctionRef<void(std::size_t, std::size_t)> task) {
  if (count == 0) return;
  if (!workers_) workers_.emplace(count_ - 1);
  std::atomic<std::size_t> next{0}, next_thread{0};
  std::exception_ptr first;
  std::mutex mutex;
  workers_->run([&] {
    try {
      const auto thread = next_thread++;
      for (auto i = next++; i < count; i = next++) task(i, thread);
    } catch (...) {
      next = count;
      const std::scoped_lock lock(mutex);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

}  // namespace weightcast
