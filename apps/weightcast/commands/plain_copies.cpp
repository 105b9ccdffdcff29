#include "commands/plain_copies.hpp"

#include <algorithm>
#include <cstring>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// What a rank copies in a try, from the trainer's two source regions in turn.
struct PlainCopy {
  const void* from[2];
  void* to;
  std::size_t size_bytes;
  const gpu::Stream* stream;  // none on the host
};

}  // namespace

std::vector<double> plain_copies(Job& job, Side& side, const Roster& roster, Placement placement) {
  const auto& world = job.world();
  const bool trainer = side.trainer() != nullptr;
  const auto buffers = trainer ? side.trainer()->buffers() : std::vector<const Buffer*>();
  const int rank = world.rank();
  const bool on_gpu = placement.kind == MemoryKind::cuda;
  const auto peers = Peers::meet(world, roster, placement, job.deadline());
  std::vector<Mapping> sources, slots;  // of the trainer, of engines
  std::vector<gpu::Stream> streams;
  std::vector<PlainCopy> copies;
  agree(world, "ceiling", job.deadline(), [&](Deadline work) {
    auto mapped = map_sources(
        world, buffers, placement.gpu, [](int) { return true; }, work);
    sources = std::move(mapped[0]);
    std::vector<ShareHandle> own;
    Region slot;
    if (!trainer) {
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
    streams.reserve(roster.tp);
    for (std::size_t t = 0; t < roster.tp; ++t) {
      const int engine = roster.engine_rank(0, t);
      const bool pushes = on_gpu && !same_gpu(peers.place(0), peers.place(engine));
      if (rank != engine && !(trainer && pushes)) continue;
      if (on_gpu) streams.emplace_back(placement.gpu);
      if (trainer) {
        const auto& handle = handles.at(static_cast<std::size_t>(engine)).at(0);
        slots.emplace_back(handle, placement.gpu);
        const auto share = share_of(buffers[0]->region().size_bytes, handle.size_bytes), half = share / 2;
        const auto from = [&](std::size_t source) { return buffers[source]->region().data + t * share + half; };
        copies.push_back({{from(0), from(1)}, slots.back().writable() + half, share - half, &streams.back()});
      } else {
        const auto share = share_of(sources[0].bytes().size(), slot.size_bytes), half = pushes ? share / 2 : share;
        const auto from = [&](std::size_t source) { return sources[source].bytes().data() + t * share; };
        copies.push_back({{from(0), from(1)}, slot.data, half, on_gpu ? &streams.back() : nullptr});
      }
    }
  });
  std::vector<double> seconds;
  constexpr std::size_t tries = 7;  // a median that one slow try does not move
  for (std::size_t i = 0; i < tries; ++i) {
    world.barrier(job.deadline());
    Stopwatch watch;
    for (auto& copy : copies) {
      if (copy.stream == nullptr) {
        std::memcpy(copy.to, copy.from[i % 2], copy.size_bytes);
      } else {
        gpu::copy_batch(&copy.to, &copy.from[i % 2], &copy.size_bytes, 1, *copy.stream);
      }
    }
    for (const auto& stream : streams) stream.synchronize(job.deadline(), "a plain copy");
    world.barrier(job.deadline());
    seconds.push_back(watch.elapsed_s());
  }
  return seconds;
}

}  // namespace weightcast
