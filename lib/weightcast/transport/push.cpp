#include "weightcast/transport/push.hpp"

#include <algorithm>
#include <utility>

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

Push::Push(const Communicator& comm, int rank, const Schedule& schedule, std::span<const ShareHandle> sinks, int gpu)
    : comm_(&comm),
      rank_(rank),
      schedule_(&schedule),
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
  queued_ = announced_ = 0;
  waiting_ = Schedule::pushes(parts_);
  if (waiting_) go_ = Message::receive(*comm_, writable_bytes_of(sink_index_), rank_, go_tag);
}

bool Push::advance() {
  if (waiting_) {
    if (!go_.done()) return false;
    waiting_ = false;
    queue();
  }
  for (; announced_ < queued_ && done_[announced_].done(); ++announced_)
    told_[announced_] = Message::send(*comm_, {}, rank_, part_tag);
  return announced_ == queued_ && std::ranges::all_of(std::span(told_).first(queued_), &Message::done);
}

void Push::queue() {
  std::byte* const sink = sinks_.at(sink_index_).writable();
  copies_.begin();
  for (const auto& part : parts_) {
    if (part.pushed.count == 0) continue;
    copies_.queue(part.pushed.of(schedule_->halves), source_, sink, stream_);
    done_[queued_++].record(stream_);
  }
}

void Pushed::begin(std::span<const Part> parts, std::size_t sink_index) {
  parts_ = parts;
  sink_index_ = sink_index;
  there_ = 0;
  waiting_ = false;
  if (Schedule::pushes(parts)) go_ = Message::send(*comm_, bytes_of(sink_index_), trainer_, go_tag);
}

bool Pushed::there(std::size_t part) {
  go_.done();
  for (; there_ <= part; ++there_) {
    if (parts_[there_].pushed.count == 0) continue;
    if (!std::exchange(waiting_, true)) next_ = Message::receive(*comm_, {}, trainer_, part_tag);
    if (!next_.done()) return false;
    waiting_ = false;
  }
  return true;
}

}  // namespace weightcast
