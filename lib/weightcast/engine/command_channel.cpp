#include "weightcast/engine/command_channel.hpp"

#include <algorithm>

#include "weightcast/comm/message.hpp"

namespace weightcast {
namespace {

constexpr int tag_command = 1, tag_reply = 2, tag_payload = 3;
constexpr std::size_t message_limit = std::size_t{1} << 30;  // counts are int

/// Calls `transfer` for pieces that one message can carry.
template <typename Byte, typename Transfer>
void in_pieces(std::span<Byte> bytes, Transfer transfer) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), message_limit));
    transfer(piece);
    bytes = bytes.subspan(piece.size());
  }
}

}  // namespace

CommandChannel::CommandChannel(const Communicator& replica, Deadline deadline)
    : comm_(replica.split(0, replica.rank(), deadline)) {}

void CommandChannel::send(const TpCommand& command, Deadline deadline) const {
  for (int rank = 1; rank < comm_.size(); ++rank)
    Message::send(comm_, bytes_of(command), rank, tag_command).wait(deadline, "sending a command");
}

TpReply CommandChannel::collect(int rank, std::vector<std::byte>& payload, Deadline deadline) const {
  try {
    TpReply reply;
    Message::receive(comm_, writable_bytes_of(reply), rank, tag_reply).wait(deadline, "a reply");
    payload.resize(reply.size_bytes);
    in_pieces(std::span(payload), [&](std::span<std::byte> piece) {
      Message::receive(comm_, piece, rank, tag_payload).wait(deadline, "the bytes of a reply");
    });
    return reply;
  } catch (const Error& error) {
    Error lost(error.code(), fmt::format("tp rank {} of this replica did not answer a read: {}", rank, error.what()),
               "look for a stopped, swapping or dead process there, or give it more time with --timeout");
    lost.set_reach(Error::Reach::lost);
    throw lost;
  }
}

std::optional<TpCommand> CommandChannel::next(const std::stop_token& stop) const {
  TpCommand command;
  auto message = Message::receive(comm_, writable_bytes_of(command), 0, tag_command);
  for (Patience patience(comm_); !message.done(); patience.pause()) {
    if (stop.stop_requested()) return std::nullopt;
  }
  return command;
}

bool CommandChannel::arrived(Deadline deadline) const {
  for (Patience patience(comm_);; patience.pause()) {
    if (message_waits(comm_, 0, tag_command)) return true;
    if (deadline.passed()) return false;
  }
}

void CommandChannel::reply(TpReply reply, std::span<const std::byte> payload, Deadline deadline) const {
  reply.size_bytes = payload.size();
  Message::send(comm_, bytes_of(reply), 0, tag_reply).wait(deadline, "sending a reply");
  in_pieces(payload, [&](std::span<const std::byte> piece) {
    Message::send(comm_, piece, 0, tag_payload).wait(deadline, "sending the bytes of a reply");
  });
}

}  // namespace weightcast
