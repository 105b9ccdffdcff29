#include "weightcast/transport/copy_tasks.hpp"

namespace weightcast {

void CopyTasks::add(const Segment& segment) {
  std::vector<Segment> tasks;
  append_tasks(segment, copy_block_bytes, tasks);
  for (const auto& task : tasks) {
    added_.push_back({task.source_offset, task.destination_offset, task.source_pitch, task.destination_pitch,
                      task.row_bytes, task.rows});
  }
  count_ = added_.size();
}

void CopyTasks::upload(Placement placement, const std::string& purpose) {
  const auto bytes = std::as_bytes(std::span(added_));
  buffer_ = Buffer::allocate(placement, bytes.size(), false, purpose);
  if (!bytes.empty()) write_region(buffer_.region(), 0, bytes);
  added_ = {};
}

void CopyTasks::queue(const Range& tasks, const std::byte* source, std::byte* destination,
                      const gpu::Stream& stream) const {
  const auto* const first = reinterpret_cast<const gpu::CopyTask*>(buffer_.region().data) + tasks.first;
  gpu::copy_strided(first, tasks.count, source, destination, stream);
}

void CopyBatch::queue(std::span<const Copy> copies, const std::byte* source, std::byte* destination,
                      const gpu::Stream& stream) {
  const auto first = used_;
  for (const auto& copy : copies) {
    from_[used_] = source + copy.source_offset;
    to_[used_] = destination + copy.destination_offset;
    sizes_[used_++] = copy.size_bytes;
  }
  gpu::copy_batch(to_.data() + first, from_.data() + first, sizes_.data() + first, used_ - first, stream);
}

}  // namespace weightcast
