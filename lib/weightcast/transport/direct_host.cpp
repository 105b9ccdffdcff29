#include "weightcast/transport/bound_transport.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

class DirectHost final : public BoundTransport {
 public:
  DirectHost() : BoundTransport("direct", MemoryKind::host) {}

 private:
  std::optional<std::string> refuse(const Peers& peers, int rank, int other) const override {
    return refuse_direct(peers, rank, other);
  }

  void bind(Deadline deadline) override { upstream_.attach(*peers_, *plan_, *endpoints_, deadline); }

  void move(const Batch& batch, Deadline deadline) override {
    if (peers_->trainer()) {
      work(batch);
      egress_bytes_ = plan_->egress_bytes_of(trainer_rank(), batch.parameters);
      return;
    }
    const auto parts = upstream_.schedule().parts(batch.parameters);
    upstream_.begin(parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto& name = plan_->model.parameters[parts[i].parameters.first].info.name;
      for (Patience patience(*peers_->group); !upstream_.ready(i); patience.pause()) {
        if (deadline.passed())
          fail(ExitCode::deadline, "{} did not arrive at rank {} in time", name, upstream_.sender(parts[i]));
      }
      const std::byte* const source = upstream_.base(batch, parts[i]);
      if (batch.observer == nullptr) {
        pull(parts[i], source, sink(batch));
      } else {
        pull(parts[i], source, sink(batch), *batch.observer);
      }
      if (deadline.passed()) fail(ExitCode::deadline, "pulling {} did not finish in time", name);
      upstream_.announce();
    }
    upstream_.finish(deadline);
  }

  void pull(const Part& part, const std::byte* source, std::byte* sink) const {
    const auto& schedule = upstream_.schedule();
    for (const auto& copy : part.copies.of(schedule.copies)) {
      stream_rows(sink + copy.destination_offset, copy.size_bytes, source + copy.source_offset, copy.size_bytes,
                  copy.size_bytes, 1);
    }
    for (const auto& segment : part.segments.of(schedule.segments)) {
      if (segment.contiguous()) continue;
      stream_rows(sink + segment.destination_offset, segment.destination_pitch, source + segment.source_offset,
                  segment.source_pitch, segment.row_bytes, segment.rows);
    }
  }

  void pull(const Part& part, const std::byte* source, std::byte* sink, Observer& observer) const {
    for (const auto& segment : part.segments.of(upstream_.schedule().segments)) {
      for (BlockCursor cursor(segment, copy_block_bytes); !cursor.done(); cursor.next()) {
        const auto& block = cursor.block();
        copy_rows(sink + block.destination_offset, block.destination_pitch, source + block.source_offset,
                  block.source_pitch, block.row_bytes, block.rows);
        observer.landed(block);
      }
    }
  }

  Upstream upstream_;
};

}  // namespace

std::unique_ptr<Transport> make_direct_host() {
  return std::make_unique<DirectHost>();
}

}  // namespace weightcast
