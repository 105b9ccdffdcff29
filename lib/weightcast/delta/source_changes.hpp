#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "weightcast/core/parallel.hpp"
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
  /// The same, of a region that differs from another one, which is that version. Both are where the marks are.
  /// Error(deadline) from a GPU.
  void begin(std::uint64_t version, const Region& base, const Region& region);
  /// The region is no version that is known any more.
  void forget() noexcept { since_.reset(); }

  /// Where the region is; nullptr when nothing has to be marked. See mark_changes() and gpu::mark().
  std::uint32_t* marks() const noexcept {
    return since_ ? reinterpret_cast<std::uint32_t*>(marks_.region().data) : nullptr;
  }

  std::uint64_t memory_bytes() const noexcept { return marks_.region().size_bytes; }

 private:
  Buffer marks_;
  gpu::Stream stream_;
  std::unique_ptr<Workers> workers_;  // on a host, once they were needed
  std::optional<std::uint64_t> since_;
};

}  // namespace weightcast
