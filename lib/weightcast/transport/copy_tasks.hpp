#pragma once

#include <span>
#include <string>
#include <vector>

#include "weightcast/device/memory.hpp"
#include "weightcast/plan/schedule.hpp"

namespace weightcast {

/// The strided copies of a schedule as tasks in a GPU's memory, cut by append_tasks().
class CopyTasks {
 public:
  /// Adds a segment's tasks. Before upload().
  void add(const Segment& segment);
  /// Of all that was added so far.
  std::size_t count() const noexcept { return count_; }
  /// Error(unavailable) naming `purpose`.
  void upload(Placement placement, const std::string& purpose);
  /// Queues tasks on a stream of that GPU.
  void queue(const Range& tasks, const std::byte* source, std::byte* destination, const gpu::Stream& stream) const;

 private:
  std::vector<gpu::CopyTask> added_;
  std::size_t count_ = 0;
  Buffer buffer_;
};

/// The contiguous copies of a run, for copy engines. What they are given stays here until the stream is done.
class CopyBatch {
 public:
  CopyBatch() = default;
  /// For at most so many copies in a run.
  explicit CopyBatch(std::size_t most) : to_(most), from_(most), sizes_(most) {}
  /// Starts over: all that was queued is done.
  void begin() noexcept { used_ = 0; }
  void queue(std::span<const Copy> copies, const std::byte* source, std::byte* destination, const gpu::Stream& stream);

 private:
  std::vector<void*> to_;
  std::vector<const void*> from_;
  std::vector<std::size_t> sizes_;
  std::size_t used_ = 0;
};

}  // namespace weightcast
