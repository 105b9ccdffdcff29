#include <array>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/expects.hpp"
#include "weightcast/transport/blocks.hpp"
#include "weightcast/transport/mpi.hpp"

namespace weightcast {
namespace {

constexpr int tag = 1;
constexpr std::size_t window = 8;                             // messages under way between two ranks
constexpr std::uint64_t message_bytes = 1 * 1024 * 1024;      // of about; digested while still in cache
constexpr std::uint64_t pack_limit_bytes = 48 * 1024 * 1024;  // of all pack buffers of the trainer

/// All shards of a batch for one tp rank, as the sequence of messages that both ends agree on without speaking.
class MessageSequence {
 public:
  MessageSequence() = default;
  MessageSequence(const TransferPlan& plan, std::size_t tp_rank, const Batch& batch, std::uint64_t block_bytes) noexcept
      : shards_(plan.ranks[tp_rank].shards),
        next_(batch.first_parameter),
        end_(next_ + batch.parameters),
        block_bytes_(block_bytes) {
    seek();
  }
  bool done() const noexcept { return next_ >= end_ && block_.done(); }
  std::size_t parameter() const noexcept { return parameter_; }
  const Segment& shard() const noexcept { return shards_[parameter_]; }
  std::uint64_t first() const noexcept { return block_.first(); }
  std::uint64_t size_bytes() const noexcept { return block_.size_bytes(); }
  void next() noexcept {
    block_.next();
    seek();
  }

 private:
  void seek() noexcept {
    while (block_.done() && next_ < end_) {
      parameter_ = next_++;
      block_ = BlockCursor(shards_[parameter_], block_bytes_);
    }
  }

  std::span<const Segment> shards_;
  std::size_t next_ = 0, end_ = 0, parameter_ = 0;
  std::uint64_t block_bytes_ = 1;
  BlockCursor block_;
};

/// A ring of requests, completed in the order in which they were begun.
struct RequestRing {
  std::array<MPI_Request, window> requests;  // [completed, begun) are under way
  std::size_t begun = 0, completed = 0;

  bool full() const noexcept { return begun - completed == window; }
  bool empty() const noexcept { return begun == completed; }
  MPI_Request& slot_to_begin() noexcept { return requests[begun++ % window]; }
  bool complete_one() {
    if (empty()) return false;
    int done = 0;
    check_mpi(MPI_Test(&requests[completed % window], &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done != 0) ++completed;
    return done != 0;
  }
  /// After a failure: what has not been matched is taken back. What has is waited for a little, so that nothing is
  /// written into memory that the next update uses; beyond that nobody sends.
  void cancel() noexcept {
    constexpr double little_s = 0.1;  // of what is kept for agreeing on the failure
    const auto patience = Deadline::after(little_s);
    for (auto i = completed; i < begun; ++i) MPI_Cancel(&requests[i % window]);
    for (int done = 0; !empty() && !patience.passed(); completed += done != 0 ? 1u : 0u)
      MPI_Test(&requests[completed % window], &done, MPI_STATUS_IGNORE);
    for (; !empty(); ++completed) MPI_Request_free(&requests[completed % window]);
  }
};

class MpiSharded final : public Transport {
 public:
  std::string_view name() const noexcept override { return "mpi"; }

  std::optional<std::string> probe(const Peers& peers) const override {
    if (peers.placement.kind != MemoryKind::host) return "the weights are not in host memory";
    return std::nullopt;
  }

  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    comm_ = peers.group->split(0, peers.group->rank(), deadline);
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    for (const auto& rank : plan.ranks) {
      for (const auto& shard : rank.shards) WEIGHTCAST_EXPECTS(shard.contiguous_destination());  // true of all families
    }
    // Equal on all ranks: both ends cut a shard into the same messages. One row may be longer.
    block_bytes_ = std::clamp<std::uint64_t>(pack_limit_bytes / (plan.tp * window), 64 * kibibyte, message_bytes);
    if (!peers.trainer()) return;
    std::uint64_t largest = block_bytes_;
    for (const auto& rank : plan.ranks) {
      for (const auto& shard : rank.shards)
        largest = shard.contiguous_source() ? largest : std::max(largest, shard.row_bytes);
    }
    pack_bytes_ = largest;
    links_.resize(plan.tp);
    allocate();
  }

  void run(const Batch& batch, Deadline deadline) override {
    if (pack_.region().data == nullptr) allocate();
    egress_bytes_ = 0;
    if (peers_->trainer()) {
      send_all(batch, deadline);
    } else {
      receive_all(batch, deadline);
    }
  }

  void release_cache() noexcept override { pack_ = Buffer(); }

  Traffic traffic() const noexcept override { return {egress_bytes_, pack_.region().size_bytes}; }

 private:
  struct Link {
    MessageSequence messages;
    RequestRing ring;
  };

  void allocate() {
    if (peers_->trainer()) pack_ = Buffer::host(plan_->tp * window * pack_bytes_, false, "pack buffers");
  }

  void send_all(const Batch& batch, Deadline deadline) {
    const std::byte* const source = endpoints_->sources.at(batch.source)->region().data;
    for (std::size_t t = 0; t < links_.size(); ++t) links_[t] = {MessageSequence(*plan_, t, batch, block_bytes_), {}};
    Patience patience(comm_);
    bool busy = true;
    try {
      while (busy) {
        busy = false;
        bool progress = false;
        for (std::size_t t = 0; t < links_.size(); ++t) {
          auto& link = links_[t];
          while (link.ring.complete_one()) progress = true;
          for (; !link.messages.done() && !link.ring.full(); link.messages.next(), progress = true)
            send_one(source, t, link);
          busy = busy || !link.ring.empty();
        }
        if (deadline.passed()) fail(ExitCode::deadline, "sending weights did not finish in time");
        if (progress) {
          patience = Patience(comm_);
        } else if (busy && !(batch.witness != nullptr && batch.witness->work())) {
          patience.pause();
        }
      }
    } catch (...) {
      for (auto& link : links_) link.ring.cancel();
      throw;
    }
  }

  void send_one(const std::byte* source, std::size_t tp_rank, Link& link) {
    const auto& shard = link.messages.shard();
    const auto first = link.messages.first(), size_bytes = link.messages.size_bytes();
    const std::byte* data = source + shard.source + first;
    if (!shard.contiguous_source()) {
      std::byte* const packed = pack_.region().data + (tp_rank * window + link.ring.begun % window) * pack_bytes_;
      copy_rows(packed, shard.row_bytes, source + shard.source + first / shard.row_bytes * shard.source_pitch,
                shard.source_pitch, shard.row_bytes, size_bytes / shard.row_bytes);
      data = packed;
    }
    check_mpi(MPI_Isend(data, static_cast<int>(size_bytes), MPI_BYTE, Peers::engine_rank(0, tp_rank, plan_->tp), tag,
                        comm_.get(), &link.ring.slot_to_begin()),
              "MPI_Isend");
    egress_bytes_ += size_bytes;
  }

  /// Receives in order, and passes every message on to the same tp rank of the next replica as it arrives.
  void receive_all(const Batch& batch, Deadline deadline) {
    const auto tp_rank = peers_->tp_rank(), replica = peers_->replica();
    const int from = replica == 0 ? 0 : Peers::engine_rank(replica - 1, tp_rank, plan_->tp);
    const int to = replica + 1 < plan_->dp ? Peers::engine_rank(replica + 1, tp_rank, plan_->tp) : MPI_PROC_NULL;
    std::byte* const sink = endpoints_->sinks.at(batch.sink).data;
    MessageSequence begun(*plan_, tp_rank, batch, block_bytes_), arrived = begun;
    RequestRing receives, sends;
    Patience patience(comm_);
    try {
      while (!arrived.done() || !sends.empty()) {
        bool progress = false;
        for (; !begun.done() && !receives.full(); begun.next()) {
          check_mpi(MPI_Irecv(sink + begun.shard().destination + begun.first(), static_cast<int>(begun.size_bytes()),
                              MPI_BYTE, from, tag, comm_.get(), &receives.slot_to_begin()),
                    "MPI_Irecv");
        }
        while (sends.complete_one()) progress = true;
        if (!sends.full() && receives.complete_one()) {
          if (to != MPI_PROC_NULL) {
            check_mpi(
                MPI_Isend(sink + arrived.shard().destination + arrived.first(), static_cast<int>(arrived.size_bytes()),
                          MPI_BYTE, to, tag, comm_.get(), &sends.slot_to_begin()),
                "MPI_Isend");
            egress_bytes_ += arrived.size_bytes();
          }
          if (batch.witness != nullptr)
            batch.witness->landed(arrived.parameter(), arrived.first(), arrived.size_bytes());
          arrived.next();
          progress = true;
        }
        if (deadline.passed()) fail(ExitCode::deadline, "receiving weights from rank {} did not finish in time", from);
        if (!progress) patience.pause();
        if (progress) patience = Patience(comm_);
      }
    } catch (...) {
      receives.cancel();
      sends.cancel();
      throw;
    }
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  std::uint64_t block_bytes_ = message_bytes, pack_bytes_ = 0, egress_bytes_ = 0;
  Communicator comm_;
  std::vector<Link> links_;  // on the trainer, by tp rank
  Buffer pack_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_sharded() {
  return std::make_unique<MpiSharded>();
}

}  // namespace weightcast
