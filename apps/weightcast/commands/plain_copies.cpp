#include "commands/plain_copies.hpp"

#include <algorithm>
#include <cstring>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// What a rank copies in a try.
struct PlainCopy {
  const void* from;
  void* to;
  std::size_t size_bytes;
  const gpu::Stream* stream;  // none on the host
};

}  // namespace

std::vector<double> plain_copies(Job& job, Side& side, const Roster& roster, Placement placement) {
  const auto& world = job.world();
  const auto buffers = side.trainer() != nullptr ? side.trainer()->buffers() : std::vector<const Buffer*>();
  const int rank = world.rank();
  const bool on_gpu = placement.kind == MemoryKind::cuda;
  const auto peers = Peers::meet(world, roster, placement, job.deadline());
  std::vector<Mapping> sources, slots;  // of the trainer, of engines
  std::vector<gpu::Stream> streams;
  std::vector<PlainCopy> even, odd;  // tries take the trainer's sources in turn
  agree(world, "ceiling", job.deadline(), [&](Deadline work) {
    sources = map_sources(world, buffers, placement.gpu, work);
    std::vector<ShareHandle> own;
    Region slot;
    if (!job.trainer()) {
      auto& store = side.engine()->store();
      const auto index = store.stage(work);
      store.drop();
      slot = store.slots()[index];
      if (on_gpu) own = {store.share()[index]};
    }
    const auto handles = world.all_gather_values(std::span<const ShareHandle>(own), work);
    const auto share_of = [&](std::uint64_t source_bytes, std::uint64_t slot_bytes) {
      return std::min(source_bytes / roster.tp, slot_bytes);
    };
    const auto add = [&](std::vector<PlainCopy>& list, const std::byte* from, std::byte* to, std::uint64_t size) {
      list.push_back({from, to, size, on_gpu ? &streams.back() : nullptr});
    };
    streams.reserve(roster.tp);
    for (std::size_t t = 0; t < roster.tp; ++t) {
      const int engine = roster.engine_rank(0, t);
      const bool pushes = on_gpu && !same_gpu(peers.place(0), peers.place(engine));
      if (rank != engine && !(job.trainer() && pushes)) continue;
      if (on_gpu) streams.emplace_back(placement.gpu);
      if (job.trainer()) {
        const auto& handle = handles.at(static_cast<std::size_t>(engine)).at(0);
        slots.emplace_back(handle, placement.gpu);
        const auto share = share_of(buffers[0]->region().size_bytes, handle.size_bytes), half = share / 2;
        add(even, buffers[0]->region().data + t * share + half, slots.back().writable() + half, share - half);
        add(odd, buffers[1]->region().data + t * share + half, slots.back().writable() + half, share - half);
      } else {
        const auto share = share_of(sources[0].bytes().size(), slot.size_bytes), half = pushes ? share / 2 : share;
        add(even, sources[0].bytes().data() + t * share, slot.data, half);
        add(odd, sources[1].bytes().data() + t * share, slot.data, half);
      }
    }
  });
  std::vector<double> seconds;
  constexpr std::size_t tries = 7;  // a median that one slow try does not move
  for (std::size_t i = 0; i < tries; ++i) {
    auto& copies = i % 2 == 0 ? even : odd;
    world.barrier(job.deadline());
    Stopwatch watch;
    for (auto& copy : copies) {
      if (copy.stream == nullptr) {
        std::memcpy(copy.to, copy.from, copy.size_bytes);
      } else {
        gpu::copy_batch(&copy.to, &copy.from, &copy.size_bytes, 1, *copy.stream);
      }
    }
    for (const auto& stream : streams) stream.synchronize(job.deadline(), "a plain copy");
    world.barrier(job.deadline());
    seconds.push_back(watch.elapsed_s());
  }
  return seconds;
}

}  // namespace weightcast
