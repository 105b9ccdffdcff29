#pragma once

#include "weightcast/comm/message.hpp"
#include "weightcast/transport/copy_tasks.hpp"
#include "weightcast/transport/direct.hpp"

/// Half of what direct moves across a link, by the GPU that has it. Messages say when: the receiver that its slot may
/// be written, and which; the sender that a part's half is there. Two ends of it: Push and Pushed.
namespace weightcast {

/// After a failure: waits a little for what is queued, so that it does not land in a later update.
void drain(const gpu::Stream& stream) noexcept;

/// The trainer, towards one engine rank.
class Push {
 public:
  /// The handles are those of the rank's sinks.
  Push(const Communicator& comm, int rank, const Schedule& schedule, std::span<const ShareHandle> sinks, int gpu);

  void begin(const Range& parameters, const std::byte* source);
  /// Does what can be done now. True when the receiver has been told of all parts.
  bool advance();
  void drain() noexcept { weightcast::drain(stream_); }

 private:
  void queue();

  const Communicator* comm_;
  int rank_;
  const Schedule* schedule_;
  std::vector<Mapping> sinks_;
  CopyBatch copies_;
  gpu::Stream stream_;            // ends before what its work points to
  std::vector<gpu::Event> done_;  // of the parts that are pushed, in their order
  std::vector<Message> told_;
  std::span<const Part> parts_;
  const std::byte* source_ = nullptr;
  std::uint64_t sink_index_ = 0;
  Message go_;
  std::size_t queued_ = 0, announced_ = 0;
  bool waiting_ = false;  // for the receiver's go
};

/// An engine rank whose trainer pushes.
class Pushed {
 public:
  Pushed(const Communicator& comm, int trainer) noexcept : comm_(&comm), trainer_(trainer) {}

  /// Gives the sink to the trainer; it may be written until all parts were there().
  void begin(std::span<const Part> parts, std::size_t sink_index);
  /// Whether what is pushed of parts[part] is in the sink. To be asked in order; polls.
  bool there(std::size_t part);

 private:
  const Communicator* comm_;
  int trainer_;
  std::span<const Part> parts_;
  std::uint64_t sink_index_ = 0;
  Message go_, next_;
  std::size_t there_ = 0;  // parts of which all is there
  bool waiting_ = false;   // for the next message
};

}  // namespace weightcast
