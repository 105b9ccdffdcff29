#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace weightcast {

/// How far a long task is, on stderr: on a terminal a bar that appears after a second and leaves nothing behind, else a
/// line every ten seconds. Silent on ranks other than 0. Lives as long as the task.
class Progress {
 public:
  /// `label` says what is going on: "writing synth".
  Progress(std::string label, std::uint64_t total_bytes);
  ~Progress();
  Progress(Progress&&) = delete;

  /// `bytes` more are done. Thread-safe.
  void add(std::uint64_t bytes) noexcept { done_.fetch_add(bytes, std::memory_order_relaxed); }

 private:
  void show(std::stop_token stop);

  std::string label_;
  std::uint64_t total_;
  std::atomic<std::uint64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;
};

}  // namespace weightcast
