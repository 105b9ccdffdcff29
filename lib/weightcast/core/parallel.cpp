#include "weightcast/core/parallel.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>

namespace weightcast {

void parallel_for(std::size_t count, std::size_t threads, const std::function<void(std::size_t)>& task) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr first;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < count; i = next++) task(i);
    } catch (...) {
      next = count;
      const std::scoped_lock lock(mutex);
      if (!first) first = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < std::min(threads, count); ++i) helpers.emplace_back(work);
    work();
  }
  if (first) std::rethrow_exception(first);
}

Workers::Workers(std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) threads_.emplace_back([this](const std::stop_token& stop) { serve(stop); });
}

void Workers::run(FunctionRef<void()> task) noexcept {
  {
    const std::scoped_lock lock(mutex_);
    task_ = task;
    ++runs_;
  }
  wake_.notify_all();
  task();
  std::unique_lock lock(mutex_);
  task_ = {};  // who has not woken up yet is not needed any more
  done_.wait(lock, [&] { return busy_ == 0; });
}

void Workers::serve(const std::stop_token& stop) noexcept {
  std::unique_lock lock(mutex_);
  for (std::size_t seen = 0; wake_.wait(lock, stop, [&] { return task_ && runs_ != seen; });) {
    seen = runs_;
    ++busy_;
    const auto task = task_;
    lock.unlock();
    task();
    lock.lock();
    if (--busy_ == 0) done_.notify_one();
  }
}

std::size_t available_cores() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<std::size_t>(std::max(1, CPU_COUNT(&set)));
}

}  // namespace weightcast
