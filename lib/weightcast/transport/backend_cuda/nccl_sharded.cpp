#include <sched.h>

#include <algorithm>

#include "weightcast/core/error.hpp"
#include "weightcast/transport/backend_cuda/nccl_communicator.hpp"
#include "weightcast/transport/bound_transport.hpp"
#include "weightcast/transport/copy_tasks.hpp"

namespace weightcast {
namespace {

/// Position in the parts of a batch that are from one trainer rank: what is queued at once is a part's pack step, with
/// its first one the part's copies.
struct Step {
  std::span<const Part> parts;  // the first of them is under way
  std::size_t from = 0;         // trainer rank
  std::size_t index = 0;        // of its pack steps

  Step(std::span<const Part> of, std::size_t trainer_rank, std::size_t step = 0)
      : parts(of), from(trainer_rank), index(step) {
    while (!parts.empty() && parts.front().from != from) parts = parts.subspan(1);
  }

  bool done() const noexcept { return parts.empty(); }
  const Part& part() const noexcept { return parts.front(); }
  bool packs() const noexcept { return index < part().pack_steps.count; }
  std::size_t pack_step() const noexcept { return part().pack_steps.first + index; }
  bool last() const noexcept { return index + 1 >= part().pack_steps.count; }
  Step next() const noexcept { return last() ? Step(parts.subspan(1), from) : Step(parts, from, index + 1); }
};

class NcclSharded final : public BoundTransport {
 public:
  NcclSharded() : BoundTransport("nccl", MemoryKind::cuda) {}

  void release_cache() noexcept override {
    for (auto& channel : channels_) channel.pack = Buffer();
  }

 private:
  /// The way from one trainer rank to all holders of one tp rank's shards.
  struct Channel {
    std::size_t from = 0;
    NcclCommunicator comm;
    gpu::Stream stream, pack_stream;
    const Schedule* schedule = nullptr;
    CopyTasks tasks;                // what packs, on a trainer rank, or unpacks
    std::vector<Range> pack_tasks;  // by pack step
    Buffer pack;
    Step step{{}, 0};       // of this run
    std::size_t steps = 0;  // before it
  };

  std::optional<std::string> refuse(const Peers& peers, int rank, int other) const override {
    return refuse_nccl(peers, rank, other);
  }
  std::uint64_t staging_bytes() const noexcept override {
    std::uint64_t bytes = 0;
    for (const auto& channel : channels_) bytes += channel.pack.region().size_bytes;
    return bytes;
  }

  void bind(Deadline deadline) override {
    const auto placement = peers_->placement();
    const auto trainers = plan_->sources.ranks.size();
    const auto ids = share_ids(*peers_, plan_->tp * trainers, deadline);
    for (std::size_t t = 0; t < plan_->tp; ++t) {
      if (!peers_->trainer() && t != peers_->tp_rank()) continue;
      const auto& schedule = plan_->ranks[t].schedule;
      for (const auto& supply : schedule.supplies) {  // an engine rank's in the order in which it takes them
        if (peers_->trainer() && supply.from != trainer_rank()) continue;
        auto& channel = channels_.emplace_back();
        channel.from = supply.from;
        channel.schedule = &schedule;
        const auto members = static_cast<int>(peers_->roster.holders(t).size()) + 1;
        const int rank = peers_->trainer() ? 0 : 1 + static_cast<int>(peers_->replica());
        // All begin before one is waited for.
        channel.comm = NcclCommunicator(ids[t * trainers + supply.from], members, rank, placement.gpu);
        channel.stream = gpu::Stream(placement.gpu);
        prepare_packing(channel);
      }
    }
    allocate();
    for (auto& channel : channels_) channel.comm.ready(deadline);
    // In one order on all ranks, or they would wait for each other in a circle: by trainer rank, then tp rank.
    std::vector<Channel*> ordered;
    for (auto& channel : channels_) ordered.push_back(&channel);
    std::ranges::stable_sort(ordered, {}, &Channel::from);
    for (auto* channel : ordered) channel->comm.barrier(deadline);
  }

  void prepare_packing(Channel& channel) {
    for (const auto& step : channel.schedule->pack_steps) {
      const auto first = channel.tasks.count();
      for (const auto& packed : step.of(channel.schedule->packed)) {
        const auto& segment = channel.schedule->segments[packed.segment_index];
        if (segment.from != channel.from || (!peers_->trainer() && segment.contiguous_destination())) continue;
        auto rows = segment.rows_from(packed.first_row, packed.row_count);
        (peers_->trainer() ? rows.destination_offset : rows.source_offset) = packed.pack_offset;
        (peers_->trainer() ? rows.destination_pitch : rows.source_pitch) = rows.row_bytes;
        channel.tasks.add(rows);
      }
      channel.pack_tasks.push_back({first, channel.tasks.count() - first});
    }
    if (channel.tasks.count() == 0) return;
    channel.pack_stream = gpu::Stream(peers_->placement().gpu);
    channel.tasks.upload(peers_->placement(), "the pack plan");
  }

  /// What release_cache() gives back.
  void allocate() {
    for (auto& channel : channels_) {
      if (channel.tasks.count() != 0 && channel.pack.region().data == nullptr)
        channel.pack = Buffer::allocate(peers_->placement(), 2 * plan_->pack_bytes, false, "a pack buffer");
    }
  }

  void move(const Batch& batch, Deadline deadline) override {
    allocate();
    try {
      for (auto& channel : channels_) {
        channel.step = Step(channel.schedule->parts(batch.parameters), channel.from);
        channel.steps = 0;
      }
      // An engine takes from one trainer rank after the other; a trainer rank serves all at once, whoever takes: so
      // they never wait for each other in a circle.
      for (std::size_t i = 1; !peers_->trainer() && i < channels_.size(); ++i) {
        while (!channels_[i - 1].step.done()) advance(channels_[i - 1], batch, deadline);
        channels_[i].stream.after(channels_[i - 1].stream);
      }
      // Shards of different tp ranks travel side by side, step by step.
      for (bool more = true; more;) {
        more = false;
        bool progress = false;
        for (auto& channel : channels_) {
          if (channel.step.done()) continue;
          more = true;
          if (channels_.size() > 1 && !channel.comm.room()) continue;
          advance(channel, batch, deadline);
          progress = true;
        }
        if (more && !progress) {
          if (deadline.passed()) fail(ExitCode::deadline, "NCCL: queueing transfers did not finish in time");
          ::sched_yield();
        }
      }
      work(batch);
      for (auto& channel : channels_) {
        if (!peers_->trainer() && channel.pack.region().data != nullptr) channel.stream.after(channel.pack_stream);
        channel.comm.wait(channel.stream, deadline, "moving weights");
      }
    } catch (...) {
      for (auto& channel : channels_) channel.comm.abort();
      throw;
    }
  }

  void advance(Channel& channel, const Batch& batch, Deadline deadline) {
    if (peers_->trainer()) {
      send(channel, batch, deadline);
    } else {
      receive(channel, batch, deadline);
    }
    channel.step = channel.step.next();
    ++channel.steps;
  }

  void send(Channel& channel, const Batch& batch, Deadline deadline) {
    std::byte* const base = source(batch);
    if (channel.steps == 0) pack(channel, channel.step, 0, base);
    // A step waits for its packing; then the next is packed into the half that the one before leaves, while this one is
    // on its way.
    if (channel.pack.region().data != nullptr) {
      channel.stream.after(channel.pack_stream);
      channel.pack_stream.after(channel.stream);
      pack(channel, channel.step.next(), channel.steps + 1, base);
    }
    broadcast(
        channel, deadline, [&](const Copy& copy) { return base + copy.source_offset; },
        [&](const PackedRows& packed) { return half(channel, channel.steps) + packed.pack_offset; });
  }

  void receive(Channel& channel, const Batch& batch, Deadline deadline) {
    std::byte* const base = sink(batch);
    const bool unpacks = channel.pack.region().data != nullptr;
    if (unpacks) channel.stream.after(channel.pack_stream);
    broadcast(
        channel, deadline, [&](const Copy& copy) { return base + copy.destination_offset; },
        [&](const PackedRows& packed) {
          const auto& segment = channel.schedule->segments[packed.segment_index];
          if (!segment.contiguous_destination()) return half(channel, channel.steps) + packed.pack_offset;
          return base + segment.destination_offset + packed.first_row * segment.destination_pitch;
        });
    if (unpacks) {
      channel.pack_stream.after(channel.stream);
      if (channel.step.packs())
        channel.tasks.queue(channel.pack_tasks[channel.step.pack_step()], half(channel, channel.steps), base,
                            channel.pack_stream);
    }
    if (batch.gpu_observer != nullptr && channel.step.last())
      batch.gpu_observer->landed(unpacks ? channel.pack_stream : channel.stream, channel.step.part());
  }

  void broadcast(Channel& channel, Deadline deadline, FunctionRef<std::byte*(const Copy&)> place_copy,
                 FunctionRef<std::byte*(const PackedRows&)> place_packed) {
    const auto& [schedule, step] = std::tie(*channel.schedule, channel.step);
    const auto copies = step.index == 0 ? step.part().copies.of(schedule.copies) : std::span<const Copy>();
    const auto packed =
        step.packs() ? schedule.pack_steps[step.pack_step()].of(schedule.packed) : std::span<const PackedRows>();
    channel.comm.broadcast(
        copies.size() + packed.size(),
        [&](std::size_t i) {
          Region place;
          if (i < copies.size()) {
            place = {place_copy(copies[i]), copies[i].size_bytes};
          } else {
            const auto& rows = packed[i - copies.size()];
            place = {place_packed(rows), rows.row_count * schedule.segments[rows.segment_index].row_bytes};
          }
          if (peers_->trainer()) egress_bytes_ += place.size_bytes;
          return place;
        },
        0, channel.stream, deadline);
  }

  static std::byte* half(const Channel& channel, std::size_t k) noexcept {
    const auto pack = channel.pack.region();
    return pack.data + k % 2 * (pack.size_bytes / 2);
  }

  static void pack(Channel& channel, const Step& step, std::size_t k, const std::byte* source) {
    if (step.done() || !step.packs()) return;
    channel.tasks.queue(channel.pack_tasks[step.pack_step()], source, half(channel, k), channel.pack_stream);
  }

  std::vector<Channel> channels_;
};

}  // namespace

std::unique_ptr<Transport> make_nccl_sharded() {
  return std::make_unique<NcclSharded>();
}

}  // namespace weightcast
