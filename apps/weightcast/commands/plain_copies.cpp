#include "commands/plain_copies.hpp"

#include <algorithm>
#include <cstring>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// What a tp rank takes from a trainer rank: as many bytes as the plan moves between them, in one piece.
struct Share {
  int trainer = 0, engine = 0;  ///< ranks
  std::uint64_t from_offset = 0, to_offset = 0, size_bytes = 0;
};

/// Of the first replica, each tp rank's in the order in which it turns to the trainer ranks.
std::vector<Share> shares_of(const TransferPlan& plan) {
  std::vector<Share> shares;
  std::vector<std::uint64_t> taken(plan.sources.ranks.size());
  for (std::size_t t = 0; t < plan.tp; ++t) {
    const auto& schedule = plan.ranks[t].schedule;
    std::uint64_t to_offset = 0;
    for (const auto& supply : schedule.supplies) {
      std::uint64_t size_bytes = 0;
      for (const auto& segment : supply.segments.of(schedule.segments)) size_bytes += segment.size_bytes();
      const auto from_offset = std::min(taken[supply.from], plan.source_bytes(supply.from) - size_bytes);
      shares.push_back(
          {static_cast<int>(supply.from), plan.roster().engine_rank(0, t), from_offset, to_offset, size_bytes});
      taken[supply.from] += size_bytes;
      to_offset += size_bytes;
    }
  }
  return shares;
}

/// What a rank copies in a try, from a trainer rank's two source regions in turn.
struct PlainCopy {
  const void* from[2];
  void* to;
  std::size_t size_bytes;
  const gpu::Stream* stream;  // none on the host
};

}  // namespace

std::vector<double> plain_copies(Job& job, Side& side, Placement placement) {
  const auto& world = job.world();
  const bool trainer = side.trainer() != nullptr;
  const auto buffers = trainer ? side.trainer()->buffers() : std::vector<const Buffer*>();
  const int rank = world.rank();
  const auto peers = Peers::meet(world, side.plan().roster(), placement, job.deadline());
  const bool on_gpu = peers.memory() == MemoryKind::cuda;
  std::vector<std::vector<Mapping>> sources;  // by trainer rank
  std::vector<Mapping> slots;                 // of engines
  std::vector<gpu::Stream> streams;
  std::vector<PlainCopy> copies;
  agree(world, "ceiling", job.deadline(), [&](Deadline work) {
    auto shares = shares_of(side.plan());
    std::erase_if(shares, [&](const Share& share) { return share.engine != rank && share.trainer != rank; });
    const auto takes_from = [&](int other) {
      return !trainer && std::ranges::any_of(shares, [&](const Share& share) { return share.trainer == other; });
    };
    sources = map_sources(world, buffers, placement.gpu, takes_from, work);
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
    streams.reserve(shares.size());
    for (const auto& share : shares) {
      const bool pushes = peers.place(share.trainer).placement.kind == MemoryKind::cuda &&
                          !same_gpu(peers.place(share.trainer), peers.place(share.engine));
      if (trainer && !pushes) continue;
      if (on_gpu) streams.emplace_back(placement.gpu);
      const auto half = pushes ? share.size_bytes / 2 : share.size_bytes;
      const auto from_offset = share.from_offset + (trainer ? half : 0),
                 to_offset = share.to_offset + (trainer ? half : 0);
      const auto from = [&](std::size_t source) {
        const auto* const region = trainer ? buffers[source]->region().data
                                           : sources[static_cast<std::size_t>(share.trainer)][source].bytes().data();
        return region + from_offset;
      };
      if (trainer) slots.emplace_back(handles[static_cast<std::size_t>(share.engine)].at(0), placement.gpu);
      auto* const to = trainer ? slots.back().writable() : slot.data;
      copies.push_back({{from(0), from(1)},
                        to + to_offset,
                        trainer ? share.size_bytes - half : half,
                        on_gpu ? &streams.back() : nullptr});
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
