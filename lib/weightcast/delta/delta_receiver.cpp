#include "weightcast/delta/delta_receiver.hpp"

#include <algorithm>

namespace weightcast {

DeltaReceiver::DeltaReceiver(const DeltaPlan& plan, std::size_t tp_rank, std::size_t inbox_count, Placement placement,
                             std::size_t parameter_count)
    : streams_(plan.streams_to(tp_rank)), changes_(parameter_count) {
  for (std::size_t i = 0; i < inbox_count; ++i) {
    inboxes_.push_back(
        Buffer::allocate(placement, plan.inbox_bytes(), plan.movement.dp > 1, "deltas that arrive (--delta-limit)"));
  }
}

DeltaReceiver::Arrived DeltaReceiver::arrived(const DeltaStream& stream, std::size_t inbox_index,
                                              std::size_t parts) const noexcept {
  const auto bytes = stream.part_ends[parts - 1] - stream.starts_bytes();
  return {&stream, inboxes_[inbox_index].region().data + stream.inbox_offset, bytes / sizeof(DeltaEntry)};
}

std::uint64_t DeltaReceiver::room(std::size_t parts) const noexcept {
  std::uint64_t entries = 0;
  for (const auto& stream : streams_) entries += arrived(stream, 0, parts).capacity;
  return entries;
}

std::vector<Region> DeltaReceiver::inboxes() const {
  std::vector<Region> regions;
  for (const auto& inbox : inboxes_) regions.push_back(inbox.region());
  return regions;
}

std::vector<ShareHandle> DeltaReceiver::share() const {
  std::vector<ShareHandle> handles;
  for (const auto& inbox : inboxes_) handles.push_back(inbox.share());
  return handles;
}

}  // namespace weightcast
