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
    sources_ = map_sources(peers, endpoints, deadline);
  }

  void run(const Batch& batch, Deadline deadline) override {
    if (peers_->trainer()) {
      while (batch.witness != nullptr && batch.witness->work()) {
      }
      return;
    }
    const std::byte* const source = sources_.at(batch.source).bytes().data();
    std::byte* const sink = endpoints_->sinks.at(batch.sink).data;
    const auto& shards = plan_->ranks[peers_->tp_rank()].shards;
    for (std::size_t p = batch.first_parameter; p < batch.first_parameter + batch.parameters; ++p) {
      pull(p, shards[p], source, sink, batch.witness);
      if (deadline.passed())
        fail(ExitCode::deadline, "pulling {} did not finish in time", plan_->model.parameters[p].info.name);
    }
  }

  Traffic traffic() const noexcept override { return {peers_->trainer() ? peers_->dp * plan_->egress_bytes() : 0, 0}; }

 private:
  static void pull(std::size_t parameter, const Segment& shard, const std::byte* source, std::byte* sink,
                   Witness* witness) {
    std::byte* const to = sink + shard.destination;
    const std::byte* const from = source + shard.source;
    if (witness == nullptr) {
      stream_rows(to, shard.destination_pitch, from, shard.source_pitch, shard.row_bytes, shard.rows);
      return;
    }
    for (BlockCursor block(shard, block_bytes); !block.done(); block.next()) {
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
  std::vector<Mapping> sources_;  // on engines
};

}  // namespace

std::vector<Mapping> map_sources(const Peers& peers, const Endpoints& endpoints, Deadline deadline) {
  std::uint64_t count = endpoints.sources.size();
  peers.group->broadcast(std::as_writable_bytes(std::span(&count, 1)), 0, deadline);
  std::vector<ShareHandle> handles(count);
  if (peers.trainer()) {
    for (std::size_t i = 0; i < count; ++i) handles[i] = endpoints.sources[i]->share();
  }
  peers.group->broadcast(std::as_writable_bytes(std::span(handles)), 0, deadline);
  std::vector<Mapping> mappings;
  if (peers.trainer()) return mappings;
  for (const auto& handle : handles) mappings.emplace_back(handle, peers.placement.gpu);
  return mappings;
}

std::unique_ptr<Transport> make_direct_host() {
  return std::make_unique<DirectHost>();
}

}  // namespace weightcast
