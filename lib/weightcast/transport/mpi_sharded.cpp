#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "weightcast/core/error.hpp"
#include "weightcast/transport/bound_transport.hpp"

namespace weightcast {
namespace {

constexpr int tag = 1;
constexpr std::size_t window = 8;  // messages under way between two ranks

// What is smaller is packed with its neighbours: that costs less than a message of its own.
constexpr std::uint64_t small_bytes = 64 * kibibyte;

/// What goes by one message: neighbouring blocks of a part that go to one run of the slot, or one block that does not.
/// Where they come from one run, too, it is sent as it lies there; else they are packed.
class Group {
 public:
  Group() = default;
  /// The cursor's block and what can go with it. Leaves the cursor behind it; `next` is the first of the segments that
  /// the cursor has not come to.
  Group(std::span<const Segment> segments, std::uint64_t message_bytes, BlockCursor& cursor, std::size_t& next) noexcept
      : cursor_(cursor), segments_(segments), next_(next), message_bytes_(message_bytes) {
    const auto& first = cursor_.block();
    size_bytes_ = first.size_bytes();
    source_run_ = first.contiguous_source();
    for (step(cursor, next); !cursor.done() && takes(cursor.block()); step(cursor, next)) {
      source_run_ = runs_on(cursor.block());
      size_bytes_ += cursor.block().size_bytes();
      ++count_;
    }
  }

  const Segment& first() const noexcept { return cursor_.block(); }
  std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  bool source_run() const noexcept { return source_run_; }
  bool destination_run() const noexcept { return first().contiguous_destination(); }
  /// Its blocks in order, with where each begins in the message.
  void for_each(FunctionRef<void(const Segment& block, std::uint64_t offset)> take) const {
    auto cursor = cursor_;
    auto next = next_;
    std::uint64_t offset = 0;
    for (std::size_t i = 0; i < count_; ++i, step(cursor, next)) {
      take(cursor.block(), offset);
      offset += cursor.block().size_bytes();
    }
  }

 private:
  void step(BlockCursor& cursor, std::size_t& next) const noexcept {
    cursor.next();
    if (cursor.done() && next < segments_.size()) cursor = BlockCursor(segments_[next++], message_bytes_);
  }
  bool takes(const Segment& block) const noexcept {
    if (!destination_run() || !block.contiguous_destination() ||
        block.destination_offset != first().destination_offset + size_bytes_ ||
        block.size_bytes() > message_bytes_ - std::min(message_bytes_, size_bytes_))
      return false;
    // A long run is not packed for the sake of what comes behind it.
    return runs_on(block) || (block.size_bytes() <= small_bytes && (!source_run_ || size_bytes_ <= small_bytes));
  }
  bool runs_on(const Segment& block) const noexcept {
    return source_run_ && block.contiguous_source() && block.source_offset == first().source_offset + size_bytes_;
  }

  BlockCursor cursor_;  // at the first block
  std::span<const Segment> segments_;
  std::size_t next_ = 0, count_ = 1;
  std::uint64_t message_bytes_ = 1, size_bytes_ = 0;
  bool source_run_ = true;
};

/// A batch for one tp rank as the sequence of messages that both ends agree on without speaking: all that it receives,
/// or what a trainer rank sends of that.
class MessageSequence {
 public:
  MessageSequence() = default;
  MessageSequence(const TransferPlan& plan, std::size_t tp_rank, const Batch& batch,
                  std::optional<std::size_t> from) noexcept
      : schedule_(&plan.ranks[tp_rank].schedule),
        from_(from),
        parts_(schedule_->parts(batch.parameters)),
        message_bytes_(plan.message_bytes) {
    next();
  }
  bool done() const noexcept { return done_; }
  const Group& message() const noexcept { return message_; }
  void next() noexcept {
    while (cursor_.done() && !parts_.empty()) {
      const auto& part = parts_.front();
      parts_ = parts_.subspan(1);
      segments_ = part.segments.of(schedule_->segments);
      if (segments_.empty() || part.from != from_.value_or(part.from)) continue;
      cursor_ = BlockCursor(segments_.front(), message_bytes_);
      next_ = 1;
    }
    done_ = cursor_.done();
    if (!done_) message_ = Group(segments_, message_bytes_, cursor_, next_);
  }

 private:
  const Schedule* schedule_ = nullptr;
  std::optional<std::size_t> from_;
  std::span<const Part> parts_;        // that are not begun
  std::span<const Segment> segments_;  // of the part under way
  std::size_t next_ = 0;               // of them
  std::uint64_t message_bytes_ = 1;
  BlockCursor cursor_;  // behind the message
  Group message_;
  bool done_ = true;
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
    for (auto i = completed; i < begun; ++i) {
      if (requests[i % window] != MPI_REQUEST_NULL) MPI_Cancel(&requests[i % window]);  // null: it is what failed
    }
    for (int done = 0; !empty() && !patience.passed(); completed += done != 0 ? 1u : 0u)
      MPI_Test(&requests[completed % window], &done, MPI_STATUS_IGNORE);
    for (; !empty(); ++completed) MPI_Request_free(&requests[completed % window]);
  }
};

class MpiSharded final : public BoundTransport {
 public:
  MpiSharded() : BoundTransport("mpi", MemoryKind::host) {}

  void release_cache() noexcept override { pack_ = Buffer(); }

 private:
  struct Link {
    MessageSequence messages;
    RequestRing ring;
  };

  std::uint64_t staging_bytes() const noexcept override { return pack_.region().size_bytes; }

  void bind(Deadline deadline) override {
    comm_ = peers_->group->split(0, peers_->rank(), deadline);
    packed_bytes_ = plan_->message_bytes;
    bool unpacks = false;
    for (std::size_t t = 0; t < plan_->tp; ++t) {
      for (const auto& segment : plan_->ranks[t].schedule.segments) {
        if (!segment.contiguous()) packed_bytes_ = std::max(packed_bytes_, segment.row_bytes);
        unpacks = unpacks || (!peers_->trainer() && t == peers_->tp_rank() && !segment.contiguous_destination());
      }
    }
    if (peers_->trainer()) links_.resize(plan_->tp);
    windows_ = peers_->trainer() ? plan_->tp : unpacks ? 2 : 0;
    allocate();
  }

  void allocate() {
    if (windows_ != 0) pack_ = Buffer::host(windows_ * window * packed_bytes_, false, "pack buffers");
  }
  /// For message `index` of those that go by one ring.
  std::byte* packed(std::size_t ring, std::size_t index) const noexcept {
    return pack_.region().data + (ring * window + index % window) * packed_bytes_;
  }

  void move(const Batch& batch, Deadline deadline) override {
    if (pack_.region().data == nullptr) allocate();
    if (peers_->trainer()) {
      send_all(batch, deadline);
    } else {
      receive_all(batch, deadline);
    }
  }

  void send_all(const Batch& batch, Deadline deadline) {
    for (std::size_t t = 0; t < links_.size(); ++t) links_[t] = {MessageSequence(*plan_, t, batch, trainer_rank()), {}};
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
            send_one(source(batch), t, link);
          busy = busy || !link.ring.empty();
        }
        if (deadline.passed()) fail(ExitCode::deadline, "sending weights did not finish in time");
        if (progress) {
          patience = Patience(comm_);
        } else if (busy && !(batch.idle && batch.idle())) {
          patience.pause();
        }
      }
    } catch (...) {
      for (auto& link : links_) link.ring.cancel();
      throw;
    }
  }

  void send_one(const std::byte* source, std::size_t tp_rank, Link& link) {
    const auto& message = link.messages.message();
    const std::byte* data = source + message.first().source_offset;
    if (!message.source_run()) {
      std::byte* const to = packed(tp_rank, link.ring.begun);
      message.for_each([&](const Segment& block, std::uint64_t at) {
        copy_rows(to + at, block.row_bytes, source + block.source_offset, block.source_pitch, block.row_bytes,
                  block.rows);
      });
      data = to;
    }
    check_mpi(MPI_Isend(data, static_cast<int>(message.size_bytes()), MPI_BYTE, peers_->roster.engine_rank(0, tp_rank),
                        tag, comm_.get(), &link.ring.slot_to_begin()),
              "MPI_Isend");
    egress_bytes_ += message.size_bytes();
  }

  /// Receives in order, and passes every message on to the same tp rank of the next replica as it arrives. Into rows
  /// that are strided in the slot, and out of them, by way of the pack buffers.
  void receive_all(const Batch& batch, Deadline deadline) {
    const auto tp_rank = peers_->tp_rank(), replica = peers_->replica();
    const auto sender = [&](const Group& message) {
      return replica == 0 ? static_cast<int>(message.first().from) : peers_->roster.engine_rank(replica - 1, tp_rank);
    };
    const int to = replica + 1 < plan_->dp ? peers_->roster.engine_rank(replica + 1, tp_rank) : MPI_PROC_NULL;
    std::byte* const base = sink(batch);
    MessageSequence begun(*plan_, tp_rank, batch, {}), arrived = begun;
    RequestRing receives, sends;
    Patience patience(comm_);
    try {
      while (!arrived.done() || !sends.empty()) {
        bool progress = false;
        for (; !begun.done() && !receives.full(); begun.next()) {
          const auto& message = begun.message();
          std::byte* const arriving =
              message.destination_run() ? base + message.first().destination_offset : packed(receiving, receives.begun);
          check_mpi(MPI_Irecv(arriving, static_cast<int>(message.size_bytes()), MPI_BYTE, sender(message), tag,
                              comm_.get(), &receives.slot_to_begin()),
                    "MPI_Irecv");
        }
        while (sends.complete_one()) progress = true;
        if (!sends.full() && receives.complete_one()) {
          const auto& message = arrived.message();
          const std::byte* whole = base + message.first().destination_offset;
          if (!message.destination_run()) {
            const auto* const from = packed(receiving, receives.completed - 1);
            const auto& block = message.first();
            copy_rows(base + block.destination_offset, block.destination_pitch, from, block.row_bytes, block.row_bytes,
                      block.rows);
            auto* const to_send = packed(passing_on, sends.begun);
            if (to != MPI_PROC_NULL) std::memcpy(to_send, from, message.size_bytes());
            whole = to_send;
          }
          if (to != MPI_PROC_NULL) {
            check_mpi(MPI_Isend(whole, static_cast<int>(message.size_bytes()), MPI_BYTE, to, tag, comm_.get(),
                                &sends.slot_to_begin()),
                      "MPI_Isend");
            egress_bytes_ += message.size_bytes();
          }
          if (batch.observer != nullptr)
            message.for_each([&](const Segment& block, std::uint64_t) { batch.observer->landed(block); });
          arrived.next();
          progress = true;
        }
        if (deadline.passed() && !arrived.done()) {
          fail(ExitCode::deadline, "receiving weights from rank {} did not finish in time", sender(arrived.message()));
        }
        if (deadline.passed()) fail(ExitCode::deadline, "passing weights on to rank {} did not finish in time", to);
        if (!progress) patience.pause();
        if (progress) patience = Patience(comm_);
      }
    } catch (...) {
      receives.cancel();
      sends.cancel();
      throw;
    }
  }

  static constexpr std::size_t receiving = 0, passing_on = 1;  // rings of an engine rank

  std::uint64_t packed_bytes_ = 0;  // room for a message
  std::size_t windows_ = 0;         // that the pack buffers have room for
  Communicator comm_;
  std::vector<Link> links_;  // on a trainer rank, by tp rank
  Buffer pack_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_sharded() {
  return std::make_unique<MpiSharded>();
}

}  // namespace weightcast
