#include "weightcast/transport/push.hpp"

#include <algorithm>

namespace weightcast {
namespace {

constexpr int go_tag = 2, part_tag = 3;

}  // namespace

void drain(const gpu::Stream& stream) noexcept {
  constexpr double longest_s = 1;  // copies that are queued end by themselves, or the GPU is lost
  try {
    stream.synchronize(Deadline::after(longest_s), "what was queued");
  } catch (...) {  // NOLINT(bugprone-empty-catch): what failed is on its way to the caller
  }
}

Push::Push(const Communicator& comm, int rank, const Schedule& schedule, std::optional<std::size_t> from,
           std::span<const ShareHandle> sinks, int gpu)
    : comm_(&comm),
      rank_(rank),
      schedule_(&schedule),
      from_(from),
      sinks_(map_all(sinks, gpu)),
      copies_(schedule.halves.size()),
      stream_(gpu) {
  const auto most = std::max(schedule.whole.size(), schedule.single.size());
  told_.resize(most);
  for (std::size_t i = 0; i < most; ++i) done_.emplace_back(gpu);
}

void Push::begin(const Range& parameters, const std::byte* source) {
  parts_ = schedule_->parts(parameters);
  source_ = source;
  next_ = pushed_ = announced_ = 0;
  copies_.begin();
  waiting_ = std::ranges::any_of(parts_, [&](const Part& part) { return pushes(part); });
  if (waiting_) go_ = Message::receive(*comm_, writable_bytes_of(sink_index_), rank_, go_tag);
}

bool Push::advance(std::size_t here, const Push* turn) {
  if (waiting_) {
    if ((turn != nullptr && !turn->queued()) || !go_.done()) return false;
    waiting_ = false;
    if (turn != nullptr) stream_.after(turn->stream_);
  }
  for (; next_ < std::min(here, parts_.size()); ++next_) {
    if (!pushes(parts_[next_])) continue;
    copies_.queue(parts_[next_].pushed.of(schedule_->halves), source_, sinks_.at(sink_index_).writable(), stream_);
    done_[pushed_++].record(stream_);
  }
  for (; announced_ < pushed_ && done_[announced_].done(); ++announced_)
    told_[announced_] = Message::send(*comm_, {}, rank_, part_tag);
  return queued() && announced_ == pushed_ && std::ranges::all_of(std::span(told_).first(pushed_), &Message::done);
}

void Pushed::begin(std::span<const Part> parts, std::size_t sink_index) {
  parts_ = parts;
  sink_index_ = sink_index;
  there_ = 0;
  waiting_ = false;
  std::fill(given_.begin(), given_.end(), false);
  for (const auto& part : parts) {
    const auto sender = upstream_->sender(part);
    const auto at = static_cast<std::size_t>(sender);
    if (!half(part) || given_[at]) continue;
    given_[at] = true;
    goes_[at] = Message::send(upstream_->comm(), bytes_of(sink_index_), sender, go_tag);
  }
}

bool Pushed::there(std::size_t part) {
  for (auto& go : goes_) go.done();
  for (; there_ <= part; ++there_) {
    if (!half(parts_[there_])) continue;
    if (!std::exchange(waiting_, true))
      next_ = Message::receive(upstream_->comm(), {}, upstream_->sender(parts_[there_]), part_tag);
    if (!next_.done()) return false;
    waiting_ = false;
  }
  return true;
}

}  // namespace weightcast
