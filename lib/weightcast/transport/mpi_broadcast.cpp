#include <array>
#include <cstring>

#include "weightcast/transport/mpi.hpp"

namespace weightcast {
namespace {

constexpr std::size_t window = 2;  // chunks under way
constexpr std::uint64_t chunk_bytes = 4 * 1024 * 1024;

/// A chunk of one full parameter: whole rows of its matrix.
struct Chunk {
  std::size_t parameter = 0;
  std::uint64_t row = 0, rows = 0;
};

class MpiBroadcast final : public Transport {
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
    largest_ = chunk_bytes;
    shapes_.clear();
    slices_.clear();
    for (const auto& rule : plan.model.parameters) {
      shapes_.push_back(matrix_of(rule.info));
      largest_ = std::max(largest_, row_bytes(shapes_.size() - 1));
      if (!peers.trainer()) slices_.push_back(shard_of(rule, plan.tp, peers.tp_rank()));
    }
    allocate();
  }

  void run(const Batch& batch, Deadline deadline) override {
    if (staging_.region().data == nullptr) allocate();
    egress_bytes_ = 0;
    Chunk posted{batch.first_parameter, 0, 0}, arrived = posted;
    std::array<MPI_Request, window> requests{};
    requests.fill(MPI_REQUEST_NULL);
    std::size_t begun = 0, completed = 0;
    const auto end = batch.first_parameter + batch.parameters;
    while (advance(arrived, end)) {
      for (; begun - completed < window && advance(posted, end); ++begun) {
        void* const data = peers_->trainer() ? source(batch, posted) : stage(begun);
        const auto size_bytes = posted.rows * row_bytes(posted.parameter);
        check_mpi(MPI_Ibcast(data, static_cast<int>(size_bytes), MPI_BYTE, 0, comm_.get(), &requests[begun % window]),
                  "MPI_Ibcast");
        if (peers_->trainer()) egress_bytes_ += size_bytes * (static_cast<std::uint64_t>(peers_->group->size()) - 1);
        posted.row += posted.rows;
      }
      wait_all(comm_, {&requests[completed % window], 1}, deadline, "a broadcast of weights",
               [&] { return peers_->trainer() && batch.witness != nullptr && batch.witness->work(); });
      if (!peers_->trainer()) slice(batch, arrived, stage(completed));
      ++completed;
      arrived.row += arrived.rows;
    }
  }

  void release_cache() noexcept override { staging_ = Buffer(); }

  Traffic traffic() const noexcept override { return {egress_bytes_, staging_.region().size_bytes}; }

 private:
  void allocate() {
    if (!peers_->trainer()) staging_ = Buffer::host(window * largest_, false, "broadcast staging");
  }

  std::uint64_t row_bytes(std::size_t parameter) const noexcept {
    return shapes_[parameter].columns *
           static_cast<std::uint64_t>(bits(plan_->model.parameters[parameter].info.dtype)) / 8;
  }

  /// Makes `chunk` begin at its row, or at the next parameter that has any; false at the end.
  bool advance(Chunk& chunk, std::size_t end) const noexcept {
    while (chunk.parameter < end && chunk.row >= shapes_[chunk.parameter].rows) chunk = {chunk.parameter + 1, 0, 0};
    if (chunk.parameter >= end) return false;
    const auto most = std::max<std::uint64_t>(chunk_bytes / row_bytes(chunk.parameter), 1);
    chunk.rows = std::min(most, shapes_[chunk.parameter].rows - chunk.row);
    return true;
  }

  std::byte* stage(std::size_t index) const noexcept {
    return staging_.region().data + index % window * (staging_.region().size_bytes / window);
  }

  void* source(const Batch& batch, const Chunk& chunk) const {
    return endpoints_->sources.at(batch.source)->region().data + plan_->source_offsets[chunk.parameter] +
           chunk.row * row_bytes(chunk.parameter);
  }

  /// Copies this rank's part of a chunk from the staging buffer into the sink.
  void slice(const Batch& batch, const Chunk& chunk, const std::byte* staged) const {
    const auto& mine = slices_[chunk.parameter];
    const auto& shard = plan_->ranks[peers_->tp_rank()].shards[chunk.parameter];
    const auto begin = std::max(chunk.row, mine.row), end = std::min(chunk.row + chunk.rows, mine.row + mine.rows);
    if (begin >= end || mine.empty()) return;
    const auto pitch = row_bytes(chunk.parameter);
    const auto element_bytes = pitch / shapes_[chunk.parameter].columns;
    const auto width = mine.columns * element_bytes, first = (begin - mine.row) * width;
    copy_rows(endpoints_->sinks.at(batch.sink).data + shard.destination + first, width,
              staged + (begin - chunk.row) * pitch + mine.column * element_bytes, pitch, width, end - begin);
    if (batch.witness != nullptr) batch.witness->landed(chunk.parameter, first, (end - begin) * width);
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  std::vector<MatrixShape> shapes_;               // of the full parameters
  std::vector<Slice> slices_;                     // this engine's part of each
  std::uint64_t egress_bytes_ = 0, largest_ = 0;  // largest_: bytes of a chunk
  Communicator comm_;
  Buffer staging_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_broadcast() {
  return std::make_unique<MpiBroadcast>();
}

}  // namespace weightcast
