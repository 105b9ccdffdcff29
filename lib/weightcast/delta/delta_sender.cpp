#include "weightcast/delta/delta_sender.hpp"

#include <algorithm>
#include <vector>

#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/delta/host_delta.hpp"
#include "weightcast/delta/stream_runs.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t blocks_at_once = 64;

std::vector<const DeltaStream*> streams_from(const DeltaPlan& plan, std::size_t trainer_rank) {
  std::vector<const DeltaStream*> streams;
  for (const auto& stream : plan.streams) {
    if (stream.from == trainer_rank) streams.push_back(&stream);
  }
  return streams;
}

Buffer make_outbox(const DeltaPlan& plan, std::size_t trainer_rank, Placement placement) {
  return Buffer::allocate(placement, plan.outbox_bytes(trainer_rank), true, "deltas to send (--delta-limit)");
}

void add(DeltaSender::Made& made, const DeltaStream& stream, std::uint64_t entries) {
  made.entries += entries;
  made.size_bytes += stream.size_bytes(entries);
  made.parts = std::max(made.parts, stream.parts(entries));
}

class HostDeltaSender final : public DeltaSender {
 public:
  HostDeltaSender(const DeltaPlan& plan, std::size_t trainer_rank)
      : DeltaSender(make_outbox(plan, trainer_rank, MemoryKind::host)),
        streams_(streams_from(plan, trainer_rank)),
        workers_(available_cores() - 1) {}

  std::optional<Made> make(const std::uint32_t* marks, const Region& source, Deadline) override {
    Made made;
    for (const auto* stream : streams_) {
      auto* const data = outbox_.region().data + stream->outbox_offset;
      auto* const starts = reinterpret_cast<std::uint64_t*>(data);
      for_each_block(*stream, [&](const DeltaRun& run, std::uint64_t block) {
        starts[block + 1] = count_marked(run, block, marks);
      });
      starts[0] = 0;
      for (std::uint64_t b = 0; b < stream->block_count; ++b) starts[b + 1] += starts[b];
      const auto count = starts[stream->block_count];
      if (count > stream->capacity) return std::nullopt;
      auto* const entries = reinterpret_cast<DeltaEntry*>(data + stream->starts_bytes());
      for_each_block(*stream, [&](const DeltaRun& run, std::uint64_t block) {
        if (starts[block] != starts[block + 1]) encode_block(run, block, marks, source.data, entries + starts[block]);
      });
      add(made, *stream, count);
    }
    return made;
  }

 private:
  template <typename Work>
  void for_each_block(const DeltaStream& stream, const Work& work) {
    workers_.run_ranges(stream.block_count, blocks_at_once, [&](std::uint64_t first, std::uint64_t last) {
      const auto* run = &run_of(stream.runs.data(), stream.runs.size(), first);
      for (auto block = first; block < last; ++block) {
        if (block >= run->first_block + run->block_count()) ++run;
        work(*run, block);
      }
    });
  }

  std::vector<const DeltaStream*> streams_;
  Workers workers_;
};

class GpuDeltaSender final : public DeltaSender {
 public:
  GpuDeltaSender(const DeltaPlan& plan, std::size_t trainer_rank, int gpu)
      : DeltaSender(make_outbox(plan, trainer_rank, {MemoryKind::cuda, gpu})), stream_(gpu) {
    std::uint64_t scratch_bytes = 0;
    for (const auto* stream : streams_from(plan, trainer_rank)) {
      runs_.emplace_back(*stream, gpu);
      scratch_bytes = std::max(scratch_bytes, gpu::encode_scratch_bytes(stream->block_count));
    }
    scratch_ = Buffer::allocate({MemoryKind::cuda, gpu}, scratch_bytes, false, "making deltas");
    counts_ = Staging(scratch_.region(), runs_.size() * sizeof(std::uint64_t));
  }

  std::optional<Made> make(const std::uint32_t* marks, const Region& source, Deadline deadline) override {
    const auto counts = counts_.first(runs_.size() * sizeof(std::uint64_t));
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const auto& stream = runs_[i].stream();
      auto* const data = outbox_.region().data + stream.outbox_offset;
      gpu::encode(runs_[i].on_gpu(), marks, source.data, reinterpret_cast<std::uint64_t*>(data),
                  reinterpret_cast<DeltaEntry*>(data + stream.starts_bytes()), stream.capacity, scratch_.region().data,
                  stream_);
      gpu::fetch(counts.data() + i * sizeof(std::uint64_t), data + stream.block_count * sizeof(std::uint64_t),
                 sizeof(std::uint64_t), stream_);
    }
    stream_.synchronize(deadline, "making a delta");
    Made made;
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const auto count = reinterpret_cast<const std::uint64_t*>(counts.data())[i];
      if (count > runs_[i].stream().capacity) return std::nullopt;
      add(made, runs_[i].stream(), count);
    }
    return made;
  }

 private:
  std::vector<StreamRuns> runs_;
  Buffer scratch_;
  Staging counts_;
  gpu::Stream stream_;
};

}  // namespace

std::unique_ptr<DeltaSender> make_delta_sender(const DeltaPlan& plan, std::size_t trainer_rank, Placement placement) {
  if (placement.kind == MemoryKind::host) return std::make_unique<HostDeltaSender>(plan, trainer_rank);
  return std::make_unique<GpuDeltaSender>(plan, trainer_rank, placement.gpu);
}

}  // namespace weightcast
