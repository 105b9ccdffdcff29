#include <cstring>

#include "weightcast/core/expects.hpp"
#include "weightcast/transport/blocks.hpp"
#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

/// Small enough to be digested from the second-level cache right after the copy.
constexpr std::uint64_t block_bytes = 256 * 1024;

class DirectHost final : public Transport {
 public:
  std::string_view name() const noexcept override { return "direct"; }

  std::optional<std::string> probe(const Peers& peers) const override {
    if (peers.placement.kind != MemoryKind::host) return "the weights are not in host memory";
    if (!peers.one_host) return "the ranks are on several hosts";
    return std::nullopt;
  }

  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    plan_ = &plan;
    endpoints_ = &endpoints;
    upstream_.attach(peers, plan, endpoints, deadline);
    if (!peers.trainer()) parts_ = parts_of(plan, peers.tp_rank());
  }

  void run(const Batch& batch, Deadline deadline) override {
    egress_bytes_ = 0;
    if (peers_->trainer()) {
      do_work(batch);
      egress_bytes_ = plan_->egress_bytes(batch.first_parameter, batch.parameters);
      return;
    }
    const std::byte* const source = upstream_.base(batch);
    std::byte* const sink = endpoints_->sinks.at(batch.sink).data;
    // The whole model goes in parts, anything else parameter by parameter.
    const bool all = batch.parameters == upstream_.shards().size();
    const auto count = all ? parts_.size() : batch.parameters;
    upstream_.begin(count);
    for (std::size_t i = 0; i < count; ++i) {
      const auto part = all ? parts_[i] : Part{batch.first_parameter + i, 1};
      const auto& name = plan_->model.parameters[part.first].info.name;
      for (Patience patience(*peers_->group); !upstream_.ready(i); patience.pause()) {
        if (deadline.passed()) fail(ExitCode::deadline, "{} did not arrive at rank {} in time", name, upstream_.rank());
      }
      for (auto p = part.first; p < part.first + part.count; ++p) pull(p, source, sink, batch.witness);
      if (deadline.passed()) fail(ExitCode::deadline, "pulling {} did not finish in time", name);
      upstream_.announce();
    }
    upstream_.finish(deadline);
  }

  Traffic traffic() const noexcept override { return {egress_bytes_, 0}; }

 private:
  void pull(std::size_t parameter, const std::byte* source, std::byte* sink, Witness* witness) const {
    const auto& shard = upstream_.shards()[parameter];
    std::byte* const to = sink + shard.destination;
    const std::byte* const from = source + shard.source;
    if (witness == nullptr) {
      stream_rows(to, shard.destination_pitch, from, shard.source_pitch, shard.row_bytes, shard.rows);
      return;
    }
    // Blocks of the shard as planned: they are what is digested, also where a replica has it in one piece.
    const auto& planned = plan_->ranks[peers_->tp_rank()].shards[parameter];
    for (BlockCursor block(planned, block_bytes); !block.done(); block.next()) {
      if (shard.contiguous_source() && shard.contiguous_destination()) {
        std::memcpy(to + block.first(), from + block.first(), block.size_bytes());
      } else {
        const auto row = block.first() / shard.row_bytes;
        copy_rows(to + row * shard.destination_pitch, shard.destination_pitch, from + row * shard.source_pitch,
                  shard.source_pitch, shard.row_bytes, block.size_bytes() / shard.row_bytes);
      }
      witness->landed(parameter, block.first(), block.size_bytes());
    }
  }

  const Peers* peers_ = nullptr;
  const TransferPlan* plan_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  Upstream upstream_;
  std::vector<Part> parts_;  // on engines
  std::uint64_t egress_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_direct_host() {
  return std::make_unique<DirectHost>();
}

}  // namespace weightcast
