#include "weightcast/delta/source_changes.hpp"

#include <cstring>

#include "weightcast/device/delta_run.hpp"

namespace weightcast {
namespace {

// Whoever reads marks from any unit on reads whole words, and the one behind.
constexpr std::uint64_t spare_bytes = 16;
constexpr double clearing_s = 60;

}  // namespace

SourceChanges::SourceChanges(Placement placement, std::uint64_t region_bytes) {
  if (region_bytes == 0) return;
  marks_ = Buffer::allocate(placement, (region_bytes / delta_unit_bytes + 7) / 8 + spare_bytes, false,
                            "marks of what changes in the trainer's weights");
  if (placement.kind == MemoryKind::cuda) stream_ = gpu::Stream(placement.gpu);
}

void SourceChanges::begin(std::uint64_t version) {
  const auto region = marks_.region();
  if (region.kind == MemoryKind::cuda) {
    gpu::zero(region.data, region.size_bytes, stream_);
    stream_.synchronize(Deadline::after(clearing_s), "clearing marks");
  } else if (region.data != nullptr) {
    std::memset(region.data, 0, region.size_bytes);
  }
  since_ = version;
}

}  // namespace weightcast
