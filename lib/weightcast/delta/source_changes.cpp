#include "weightcast/delta/source_changes.hpp"

#include <cstring>

#include "weightcast/delta/host_delta.hpp"

namespace weightcast {
namespace {

// Whoever reads marks from any unit on reads whole words, and the one behind.
constexpr std::uint64_t spare_bytes = 16;
constexpr std::uint64_t units_at_once = 1 << 20;
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

void SourceChanges::begin(std::uint64_t version, const Region& base, const Region& region) {
  begin(version);
  if (marks() == nullptr) return;
  if (region.kind == MemoryKind::cuda) {
    gpu::mark(base.data, region.data, region.size_bytes, marks(), stream_);
    return stream_.synchronize(Deadline::after(clearing_s), "comparing two versions");
  }
  if (!workers_) workers_ = std::make_unique<Workers>(available_cores() - 1);
  const auto units = region.size_bytes / delta_unit_bytes;
  workers_->run_ranges(units, units_at_once, [&](std::uint64_t first, std::uint64_t last) {
    const auto at = first * delta_unit_bytes;
    mark_changes(base.data + at, region.data + at, first, last - first, marks());
  });
}

}  // namespace weightcast
