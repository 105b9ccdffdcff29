#pragma once

#include <optional>
#include <utility>

#include "weightcast/comm/message.hpp"
#include "weightcast/transport/copy_tasks.hpp"
#include "weightcast/transport/direct.hpp"

/// Half of what direct moves across a link, by the GPU that has it. Messages say when: the receiver that its slot may
/// be written, and which; the sender that a part's half is there. Two ends of it: Push and Pushed.
namespace weightcast {

/// After a failure: waits a little for what is queued, so that it does not land in a later update.
void drain(const gpu::Stream& stream) noexcept;

/// Who sends, a trainer rank or an engine rank of the replica before, towards one engine rank.
class Push {
 public:
  /// Of that schedule a trainer rank has what is `from` it, a replica (nothing) has all. The handles are those of the
  /// rank's sinks.
  Push(const Communicator& comm, int rank, const Schedule& schedule, std::optional<std::size_t> from,
       std::span<const ShareHandle> sinks, int gpu);

  void begin(const Range& parameters, const std::byte* source);
  /// Does what can be done now, when the first `here` parts of the movement are in the source, and not before all of
  /// `turn` (may be nullptr) is queued and done. True when the receiver has been told of all parts.
  bool advance(std::size_t here, const Push* turn);
  void drain() noexcept { weightcast::drain(stream_); }

 private:
  bool pushes(const Part& part) const noexcept {
    return part.pushed.count != 0 && part.from == from_.value_or(part.from);
  }
  /// Whether the stream has been given all of this run.
  bool queued() const noexcept { return !waiting_ && next_ == parts_.size(); }

  const Communicator* comm_;
  int rank_;
  const Schedule* schedule_;
  std::optional<std::size_t> from_;
  std::vector<Mapping> sinks_;
  CopyBatch copies_;
  gpu::Stream stream_;            // ends before what its work points to
  std::vector<gpu::Event> done_;  // of the parts that are pushed, in their order
  std::vector<Message> told_;
  std::span<const Part> parts_;
  const std::byte* source_ = nullptr;
  std::uint64_t sink_index_ = 0;
  Message go_;
  std::size_t next_ = 0;                    // of the parts
  std::size_t pushed_ = 0, announced_ = 0;  // of those that are pushed
  bool waiting_ = false;                    // for the receiver's go
};

/// An engine rank, towards all who push to it.
class Pushed {
 public:
  Pushed() = default;
  /// `pushing`: by trainer rank, whether whoever sends what is from it (Upstream::sender()) pushes half. `upstream`
  /// must outlive it.
  Pushed(const Upstream& upstream, std::vector<bool> pushing)
      : upstream_(&upstream),
        pushing_(std::move(pushing)),
        goes_(static_cast<std::size_t>(upstream.comm().size())),
        given_(goes_.size()) {}

  /// Whether half of this part is pushed.
  bool half(const Part& part) const noexcept { return part.pushed.count != 0 && pushing_[part.from]; }
  /// Gives the sink to those who push; it may be written until all parts were there().
  void begin(std::span<const Part> parts, std::size_t sink_index);
  /// Whether what is pushed of parts[part] is in the sink. To be asked in order; polls.
  bool there(std::size_t part);

 private:
  const Upstream* upstream_ = nullptr;
  std::vector<bool> pushing_;
  std::span<const Part> parts_;
  std::uint64_t sink_index_ = 0;
  std::vector<Message> goes_;  // by rank
  std::vector<bool> given_;
  Message next_;
  std::size_t there_ = 0;  // parts of which all is there
  bool waiting_ = false;   // for the next message
};

}  // namespace weightcast
