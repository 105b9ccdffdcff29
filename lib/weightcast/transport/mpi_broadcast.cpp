#include <algorithm>
#include <array>

#include "weightcast/core/bytes.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/transport/bound_transport.hpp"

namespace weightcast {
namespace {

constexpr std::size_t window = 2;  // chunks under way
constexpr std::uint64_t chunk_bytes = 4 * mebibyte;

class MpiBroadcast final : public BoundTransport {
 public:
  MpiBroadcast() : BoundTransport("mpi", MemoryKind::host) {}

  void release_cache() noexcept override { staging_ = Buffer(); }

 private:
  std::uint64_t staging_bytes() const noexcept override { return staging_.region().size_bytes; }

  void bind(Deadline deadline) override {
    comm_ = peers_->group->split(0, peers_->rank(), deadline);
    chunks_ = chunks_of(*plan_, chunk_bytes);
    for (const auto& chunk : chunks_) largest_bytes_ = std::max(largest_bytes_, chunk.size_bytes);
    allocate();
  }

  void allocate() {
    if (receives()) staging_ = Buffer::host(window * largest_bytes_, false, "broadcast staging");
  }

  void move(const Batch& batch, Deadline deadline) override {
    if (staging_.region().data == nullptr) allocate();
    std::array<MPI_Request, window> requests{};
    requests.fill(MPI_REQUEST_NULL);
    const auto chunks = chunks_of(chunks_, batch.parameters);
    for (std::size_t begun = 0, completed = 0; completed < chunks.size(); ++completed) {
      for (; begun < chunks.size() && begun - completed < window; ++begun) {
        const auto& chunk = chunks[begun];
        const auto from = static_cast<int>(chunk.from);
        const bool mine = from == peers_->rank();
        void* const data = mine ? source(batch) + chunk.source_offset : stage(begun);
        check_mpi(MPI_Ibcast(data, static_cast<int>(chunk.size_bytes), MPI_BYTE, from, comm_.get(),
                             &requests[begun % window]),
                  "MPI_Ibcast");
        if (mine) egress_bytes_ += chunk.size_bytes * (peers_->roster.rank_count() - 1);
      }
      wait_all(comm_, {&requests[completed % window], 1}, deadline, "a broadcast of weights", batch.idle);
      if (!peers_->trainer()) slice(batch, chunks[completed], stage(completed));
    }
  }

  /// Also a trainer rank gets what the others send.
  bool receives() const noexcept { return !peers_->trainer() || peers_->roster.trainers > 1; }

  std::byte* stage(std::size_t index) const noexcept {
    return staging_.region().data + index % window * largest_bytes_;
  }

  /// Copies this rank's part of a chunk from the staging buffer into the sink.
  void slice(const Batch& batch, const Chunk& chunk, const std::byte* staged) const {
    const auto mine = segment_of(*plan_, peers_->tp_rank(), chunk.staged);
    if (mine.rows == 0) return;
    copy_rows(sink(batch) + mine.destination_offset, mine.destination_pitch, staged + mine.source_offset,
              mine.source_pitch, mine.row_bytes, mine.rows);
    if (batch.observer != nullptr) batch.observer->landed(mine);
  }

  std::vector<Chunk> chunks_;
  std::uint64_t largest_bytes_ = chunk_bytes;
  Communicator comm_;
  Buffer staging_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_broadcast() {
  return std::make_unique<MpiBroadcast>();
}

}  // namespace weightcast
