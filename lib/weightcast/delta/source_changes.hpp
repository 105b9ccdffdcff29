#pragma once

#include <cstdint>
#include <optional>

#include "weightcast/device/memory.hpp"

namespace weightcast {

/// What changed in a source region since it was a version that engines may still serve: a mark for each of its units,
/// where the region is. What differs from that version is marked, and more may be.
class SourceChanges {
 public:
  SourceChanges() = default;
  /// Of a region of that size. Knows no version yet.
  SourceChanges(Placement placement, std::uint64_t region_bytes);

  /// The version; nothing when it is not known, and then marks mean nothing.
  std::optional<std::uint64_t> since() const noexcept { return since_; }
  /// The region is this version now: no marks.
  void begin(std::uint64_t version);
  /// The region is no version that is known any more.
  void forget() noexcept { since_.reset(); }

  /// 0 without memory: then nothing is marked.
  explicit operator bool() const noexcept { return marks_.region().data != nullptr; }
  /// In the region's kind of memory; of no use to others. See mark_changes() and gpu::mark().
  std::uint32_t* marks() const noexcept { return reinterpret_cast<std::uint32_t*>(marks_.region().data); }

 private:
  Buffer marks_;
  gpu::Stream stream_;
  std::optional<std::uint64_t> since_;
};

}  // namespace weightcast
