#pragma once

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

}  // namespace weightcast
