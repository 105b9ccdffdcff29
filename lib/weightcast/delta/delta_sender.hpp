#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "weightcast/core/deadline.hpp"
#include "weightcast/delta/delta_plan.hpp"
#include "weightcast/device/memory.hpp"

namespace weightcast {

/// A trainer rank's end: makes its streams in an outbox, on the host or on a GPU. All memory is allocated by the
/// constructor.
class DeltaSender {
 public:
  virtual ~DeltaSender() = default;

  struct Made {
    std::uint64_t entries = 0;     ///< in all streams
    std::uint64_t size_bytes = 0;  ///< of them all
    std::size_t parts = 0;         ///< that the longest has
  };
  /// Of what is marked (source_changes.hpp) in a source region of the plan's. Nothing when a stream has no room for it:
  /// then the outbox holds nothing of use. Error(deadline) from a GPU.
  virtual std::optional<Made> make(const std::uint32_t* marks, const Region& source, Deadline deadline) = 0;
  /// Where the streams are, for whoever moves them.
  const Buffer& outbox() const noexcept { return outbox_; }

 protected:
  explicit DeltaSender(Buffer outbox) : outbox_(std::move(outbox)) {}
  Buffer outbox_;
};

/// `plan` must outlive it. Error(unavailable) when memory is short.
std::unique_ptr<DeltaSender> make_delta_sender(const DeltaPlan& plan, std::size_t trainer_rank, Placement placement);

}  // namespace weightcast
