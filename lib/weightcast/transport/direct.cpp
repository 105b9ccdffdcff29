#include "weightcast/transport/direct.hpp"

namespace weightcast {
namespace {

constexpr int tag = 1;

}  // namespace

std::optional<std::string> refuse_direct(const Peers& peers, int rank, int other) {
  if (peers.place(rank).host == peers.place(other).host) return std::nullopt;
  return "the ranks are on several hosts";
}

std::vector<Mapping> map_all(std::span<const ShareHandle> handles, int gpu) {
  std::vector<Mapping> mappings;
  for (const auto& handle : handles) mappings.emplace_back(handle, gpu);
  return mappings;
}

std::vector<std::vector<Mapping>> map_sources(const Communicator& group, const std::vector<const Buffer*>& sources,
                                              int gpu, FunctionRef<bool(int rank)> wanted, Deadline deadline) {
  std::vector<ShareHandle> mine;
  for (const auto* source : sources) {
    if (source->region().size_bytes != 0) mine.push_back(source->share());
  }
  const auto handles = group.all_gather_values(std::span<const ShareHandle>(mine), deadline);
  std::vector<std::vector<Mapping>> mappings(handles.size());
  for (int rank = 0; rank < group.size(); ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    if (rank != group.rank() && wanted(rank)) mappings[at] = map_all(handles[at], gpu);
  }
  return mappings;
}

void Upstream::attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) {
  const int gpu = peers.placement().gpu;
  const auto tp_rank = peers.trainer() ? 0 : peers.tp_rank(), replica = peers.trainer() ? 0 : peers.replica();
  if (!peers.trainer()) schedule_ = &plan.ranks[tp_rank].schedule;
  const auto wanted = [&](int rank) {
    return !peers.trainer() && replica == 0 && schedule_->supply(static_cast<std::size_t>(rank)) != nullptr;
  };
  sources_ = map_sources(*peers.group, endpoints.sources, gpu, wanted, deadline);
  if (peers.roster.dp == 1 && peers.memory() == MemoryKind::host) return;
  comm_ = peers.group->split(0, peers.group->rank(), deadline);
  sinks_ = comm_.all_gather_values(std::span<const ShareHandle>(endpoints.shared_sinks), deadline);
  if (peers.trainer()) return;
  if (replica + 1 < peers.roster.dp) next_ = peers.roster.engine_rank(replica + 1, tp_rank);
  if (replica == 0) return;
  before_ = peers.roster.engine_rank(replica - 1, tp_rank);
  slots_ = map_all(sinks_of(before_), gpu);
  schedule_ = &plan.ranks[tp_rank].relay;
}

const std::byte* Upstream::base(const Batch& batch, const Cut& part) const {
  return (before_ >= 0 ? slots_.at(batch.sink_index) : sources_.at(part.from).at(batch.source_index)).bytes().data();
}

void Upstream::begin(std::size_t parts) {
  arrived_ = announced_ = 0;
  if (next_ >= 0 && outgoing_.size() < parts) outgoing_.resize(parts);
}

bool Upstream::ready(std::size_t part) {
  if (before_ < 0) return true;
  while (arrived_ <= part) {
    if (!incoming_) incoming_ = Message::receive(comm_, {}, before_, tag);
    if (!incoming_->done()) return false;
    incoming_.reset();
    ++arrived_;
  }
  return true;
}

void Upstream::announce() {
  if (next_ >= 0) outgoing_[announced_++] = Message::send(comm_, {}, next_, tag);
}

void Upstream::finish(Deadline deadline) {
  for (std::size_t i = 0; i < announced_; ++i) outgoing_[i].wait(deadline, "telling the next replica");
}

}  // namespace weightcast
