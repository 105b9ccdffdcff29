#include "weightcast/core/bytes.hpp"
#include "weightcast/core/expects.hpp"
#include "weightcast/transport/backend_cuda/nccl_backend.hpp"
#include "weightcast/transport/backend_cuda/nccl_communicator.hpp"
#include "weightcast/transport/blocks.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t pack_limit_bytes = 256 * mebibyte;  // of all pack buffers of the trainer
constexpr std::uint64_t alignment = TransferPlan::alignment_bytes;

/// One broadcast: from the trainer's weights or, when its rows are strided there, from the pack buffer.
struct Piece {
  std::uint64_t source = 0, destination = 0, size_bytes = 0;
  bool packed = false;
};

/// What is queued at once: its packed pieces fit into half a pack buffer.
struct Step {
  std::size_t first_piece = 0, pieces = 0;
  std::size_t first_task = 0, tasks = 0;  // that pack
  Part landed;                            // parameters that are complete after it
};

/// All that one tp rank receives, as the steps that both ends agree on without speaking.
struct Script {
  std::vector<Piece> pieces;
  std::vector<gpu::CopyTask> tasks;
  std::vector<Step> steps;              // first each parameter alone, then the model in parts
  std::vector<std::size_t> first_step;  // of each parameter, of the whole model, and the end

  std::span<const Step> of(const Batch& batch) const {
    const auto parameters = first_step.size() - 2;
    const bool all = batch.first_parameter == 0 && batch.parameters == parameters;
    const auto begin = all ? first_step[parameters] : first_step[batch.first_parameter];
    const auto end = all ? first_step.back() : first_step[batch.first_parameter + batch.parameters];
    return std::span(steps).subspan(begin, end - begin);
  }
};

class ScriptWriter {
 public:
  ScriptWriter(const TransferPlan& plan, std::size_t tp_rank, std::uint64_t half_bytes)
      : shards_(plan.ranks[tp_rank].shards), half_bytes_(half_bytes) {
    for (std::size_t p = 0; p < shards_.size(); ++p) {
      script_.first_step.push_back(script_.steps.size());
      write({p, 1});
    }
    script_.first_step.push_back(script_.steps.size());
    for (const auto& part : parts_of(plan, tp_rank)) write(part);
    script_.first_step.push_back(script_.steps.size());
  }
  Script take() { return std::move(script_); }

 private:
  void write(Part part) {
    begin_step();
    for (const auto& move : coalesce({shards_.begin() + static_cast<std::ptrdiff_t>(part.first),
                                      shards_.begin() + static_cast<std::ptrdiff_t>(part.first + part.count)})) {
      WEIGHTCAST_EXPECTS(move.contiguous_destination());  // true of all families
      if (move.contiguous_source()) {
        script_.pieces.push_back({move.source, move.destination, move.size_bytes(), false});
      } else {
        write_strided(move);
      }
    }
    end_step(part);
  }

  void write_strided(const Segment& move) {
    for (std::uint64_t row = 0; row < move.rows;) {
      auto rows = (half_bytes_ - packed_) / move.row_bytes;
      if (rows == 0) {
        end_step({});
        begin_step();
        continue;
      }
      rows = std::min(rows, move.rows - row);
      script_.pieces.push_back({packed_, move.destination + row * move.destination_pitch, rows * move.row_bytes, true});
      add_copy_tasks(script_.tasks, {move.source + row * move.source_pitch, packed_, move.row_bytes, rows,
                                     move.source_pitch, move.row_bytes});
      row += rows;
      packed_ = std::min(half_bytes_, (packed_ + rows * move.row_bytes + alignment - 1) / alignment * alignment);
    }
  }

  void begin_step() {
    step_ = {script_.pieces.size(), 0, script_.tasks.size(), 0, {}};
    packed_ = 0;
  }

  void end_step(Part landed) {
    step_.pieces = script_.pieces.size() - step_.first_piece;
    step_.tasks = script_.tasks.size() - step_.first_task;
    step_.landed = landed;
    script_.steps.push_back(step_);
  }

  const std::vector<Segment>& shards_;
  std::uint64_t half_bytes_, packed_ = 0;
  Step step_;
  Script script_;
};

class NcclSharded final : public Transport {
 public:
  std::string_view name() const noexcept override { return "nccl"; }
  std::optional<std::string> probe(const Peers& peers) const override { return refuse_nccl(peers); }

  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    endpoints_ = &endpoints;
    const auto gpu = peers.placement.gpu;
    // Equal on all ranks: both ends cut a shard into the same pieces.
    std::uint64_t half_bytes = pack_limit_bytes / 2 / plan.tp / alignment * alignment;
    for (const auto& rank : plan.ranks) {
      for (const auto& shard : rank.shards) {
        if (!shard.contiguous_source()) half_bytes = std::max(half_bytes, shard.row_bytes);
      }
    }
    const auto ids = share_ids(peers, plan.tp, deadline);
    const auto members = static_cast<int>(plan.dp) + 1;
    for (std::size_t t = 0; t < plan.tp; ++t) {
      if (!peers.trainer() && t != peers.tp_rank()) continue;
      auto& channel = channels_.emplace_back();
      const int rank = peers.trainer() ? 0 : 1 + static_cast<int>(peers.replica());
      channel.comm = NcclCommunicator(ids[t], members, rank, gpu);  // all of them begin before one is waited for
      channel.stream = gpu::Stream(gpu);
      channel.script = ScriptWriter(plan, t, half_bytes).take();
      if (!peers.trainer() || channel.script.tasks.empty()) continue;
      const auto tasks = std::as_bytes(std::span(channel.script.tasks));
      channel.pack_stream = gpu::Stream(gpu);
      channel.tasks = Buffer::allocate(peers.placement, tasks.size(), false, "the pack plan");
      write_region(channel.tasks.region(), 0, tasks);
    }
    half_bytes_ = half_bytes;
    allocate();
    const auto scratch = Buffer::allocate(peers.placement, sizeof(float), false, "a barrier");
    for (const auto& channel : channels_) channel.comm.ready(deadline, "forming the communicator");
    for (const auto& channel : channels_) channel.comm.barrier(scratch.region().data, channel.stream, deadline);
  }

  void run(const Batch& batch, Deadline deadline) override {
    egress_bytes_ = 0;
    allocate();
    try {
      // Shards of different tp ranks travel side by side, step by step.
      for (std::size_t k = 0, left = channels_.size(); left != 0; ++k) {
        left = 0;
        for (auto& channel : channels_) {
          const auto steps = channel.script.of(batch);
          if (k >= steps.size()) continue;
          ++left;
          if (peers_->trainer()) {
            send(channel, steps, k, batch, deadline);
          } else {
            receive(channel, steps[k], batch, deadline);
          }
        }
      }
      if (peers_->trainer()) do_work(batch);
      for (const auto& channel : channels_) channel.comm.wait(channel.stream, deadline, "moving weights");
    } catch (...) {
      for (auto& channel : channels_) channel.comm.abort();
      throw;
    }
  }

  void release_cache() noexcept override {
    for (auto& channel : channels_) channel.pack = Buffer();
  }

  Traffic traffic() const noexcept override {
    std::uint64_t staging_bytes = 0;
    for (const auto& channel : channels_) staging_bytes += channel.pack.region().size_bytes;
    return {egress_bytes_, staging_bytes};
  }

 private:
  /// The way to all holders of one tp rank's shards; on an engine, its own.
  struct Channel {
    NcclCommunicator comm;
    gpu::Stream stream, pack_stream;
    Script script;
    Buffer tasks, pack;
  };

  /// What release_cache() gives back.
  void allocate() {
    for (auto& channel : channels_) {
      if (channel.tasks.region().data != nullptr && channel.pack.region().data == nullptr)
        channel.pack = Buffer::allocate(peers_->placement, 2 * half_bytes_, false, "a pack buffer");
    }
  }

  void send(Channel& channel, std::span<const Step> steps, std::size_t k, const Batch& batch, Deadline deadline) {
    const std::byte* const source = endpoints_->sources.at(batch.source)->region().data;
    if (k == 0) pack(channel, steps[0], 0, source);
    // Step k waits for its packing; then k + 1 is packed into the half that k - 1 leaves, while k is on its way.
    if (channel.pack.region().data != nullptr) {
      channel.stream.after(channel.pack_stream);
      channel.pack_stream.after(channel.stream);
      if (k + 1 < steps.size()) pack(channel, steps[k + 1], k + 1, source);
    }
    broadcast(channel, steps[k], deadline, [&](const Piece& piece) {
      egress_bytes_ += piece.size_bytes;
      return const_cast<std::byte*>(piece.packed ? half(channel, k) : source) + piece.source;
    });
  }

  void receive(Channel& channel, const Step& step, const Batch& batch, Deadline deadline) {
    std::byte* const sink = endpoints_->sinks.at(batch.sink).data;
    broadcast(channel, step, deadline, [&](const Piece& piece) { return sink + piece.destination; });
    if (batch.witness != nullptr && step.landed.count != 0)
      batch.witness->landed_on(channel.stream, step.landed.first, step.landed.count);
  }

  static void broadcast(const Channel& channel, const Step& step, Deadline deadline,
                        FunctionRef<std::byte*(const Piece&)> place) {
    if (step.pieces == 0) return;
    channel.comm.group(
        [&] {
          auto status = ncclSuccess;
          for (const auto& piece : std::span(channel.script.pieces).subspan(step.first_piece, step.pieces)) {
            auto* const data = place(piece);
            const auto queued =
                ncclBroadcast(data, data, piece.size_bytes, ncclUint8, 0, channel.comm.get(), cuda(channel.stream));
            if (status == ncclSuccess || status == ncclInProgress) status = queued;
          }
          return status;
        },
        deadline);
  }

  static std::byte* half(const Channel& channel, std::size_t k) noexcept {
    const auto pack = channel.pack.region();
    return pack.data + k % 2 * (pack.size_bytes / 2);
  }

  static void pack(Channel& channel, const Step& step, std::size_t k, const std::byte* source) {
    gpu::copy_strided(reinterpret_cast<const gpu::CopyTask*>(channel.tasks.region().data) + step.first_task, step.tasks,
                      source, half(channel, k), channel.pack_stream);
  }

  const Peers* peers_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  std::uint64_t half_bytes_ = 0, egress_bytes_ = 0;
  std::vector<Channel> channels_;
};

}  // namespace

std::unique_ptr<Transport> make_nccl_sharded() {
  return std::make_unique<NcclSharded>();
}

}  // namespace weightcast
