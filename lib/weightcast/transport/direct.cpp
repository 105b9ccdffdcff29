#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

constexpr int tag = 1;

}  // namespace

std::vector<Mapping> map_all(std::span<const ShareHandle> handles, int gpu) {
  std::vector<Mapping> mappings;
  for (const auto& handle : handles) mappings.emplace_back(handle, gpu);
  return mappings;
}

std::optional<std::string> refuse_direct(const Peers& peers, int rank, int other) {
  if (peers.place(rank).host == peers.place(other).host) return std::nullopt;
  return "the ranks are on several hosts";
}

std::vector<Mapping> map_sources(const Communicator& group, const std::vector<const Buffer*>& sources, int gpu,
                                 Deadline deadline) {
  std::uint64_t count = sources.size();
  group.broadcast(std::as_writable_bytes(std::span(&count, 1)), 0, deadline);
  const bool trainer = group.rank() == 0;
  std::vector<ShareHandle> handles(count);
  for (std::size_t i = 0; trainer && i < count; ++i) handles[i] = sources[i]->share();
  group.broadcast(std::as_writable_bytes(std::span(handles)), 0, deadline);
  return trainer ? std::vector<Mapping>() : map_all(handles, gpu);
}

void Upstream::attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) {
  const int gpu = peers.placement().gpu;
  mappings_ = map_sources(*peers.group, endpoints.sources, gpu, deadline);
  const auto tp_rank = peers.trainer() ? 0 : peers.tp_rank();
  if (!peers.trainer()) {
    schedule_ = &plan.ranks[tp_rank].schedule;
    from_ = 0;
  }
  if (peers.roster.dp == 1 && peers.placement().kind == MemoryKind::host) return;
  comm_ = peers.group->split(0, peers.group->rank(), deadline);
  sinks_ = comm_.all_gather_values(std::span<const ShareHandle>(endpoints.shared_sinks), deadline);
  if (peers.trainer()) return;
  const auto replica = peers.replica();
  if (replica + 1 < peers.roster.dp) to_ = peers.roster.engine_rank(replica + 1, tp_rank);
  if (replica == 0) return;
  from_ = peers.roster.engine_rank(replica - 1, tp_rank);
  mappings_.clear();
  mappings_ = map_all(sinks_of(from_), gpu);
  schedule_ = &plan.ranks[tp_rank].relay;
}

const std::byte* Upstream::base(const Batch& batch) const {
  return mappings_.at(from_ == 0 ? batch.source_index : batch.sink_index).bytes().data();
}

void Upstream::begin(std::size_t parts) {
  arrived_ = announced_ = 0;
  if (announces() && outgoing_.size() < parts) outgoing_.resize(parts);
}

bool Upstream::ready(std::size_t part) {
  if (from_ == 0) return true;
  while (arrived_ <= part) {
    if (!incoming_) incoming_ = Message::receive(comm_, {}, from_, tag);
    if (!incoming_->done()) return false;
    incoming_.reset();
    ++arrived_;
  }
  return true;
}

void Upstream::announce() {
  if (announces()) outgoing_[announced_++] = Message::send(comm_, {}, to_, tag);
}

void Upstream::finish(Deadline deadline) {
  for (std::size_t i = 0; i < announced_; ++i) outgoing_[i].wait(deadline, "telling the next replica");
}

}  // namespace weightcast
