#pragma once

#include <span>

#include "weightcast/delta/delta_plan.hpp"
#include "weightcast/device/memory.hpp"

namespace weightcast {

/// A stream's runs in a GPU's memory.
class StreamRuns {
 public:
  /// `stream` must outlive it.
  StreamRuns(const DeltaStream& stream, int gpu)
      : stream_(&stream),
        memory_(Buffer::allocate({MemoryKind::cuda, gpu}, stream.runs.size() * sizeof(DeltaRun), false,
                                 "the blocks of deltas")) {
    write_region(memory_.region(), 0, std::as_bytes(std::span(stream.runs)));
  }
  const DeltaStream& stream() const noexcept { return *stream_; }
  gpu::DeltaRuns on_gpu() const noexcept {
    return {reinterpret_cast<const DeltaRun*>(memory_.region().data), stream_->runs.size(), stream_->block_count};
  }

 private:
  const DeltaStream* stream_;
  Buffer memory_;
};

}  // namespace weightcast
