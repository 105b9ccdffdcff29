#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <type_traits>
#include <vector>

#include "weightcast/comm/communicator.hpp"

namespace weightcast {

/// What the first rank of a replica asks of the others. Plain data of fixed size, sent as bytes.
struct TpCommand {
  enum class Verb : std::uint64_t {
    update,    ///< take part in the trainer's next publish() or roll_back()
    rows,      ///< first `count` rows of parameter `first`
    digests,   ///< digests of parameters [first, first + count)
    scrub,     ///< hold all of the version against its proof: a byte, 1 when there was one
    shutdown,  ///< stop serving
  };
  Verb verb = Verb::update;
  std::uint64_t request = 0;  ///< number of a read; its reply carries the same
  std::uint64_t version = 0;  ///< what a read must be answered from
  std::uint64_t first = 0, count = 0;
  std::uint64_t empty_cache = 0;  ///< update: also give back memory that is only kept for speed
};
static_assert(std::is_trivially_copyable_v<TpCommand>);

/// What a rank answers to a read: this, and then `size_bytes` bytes.
struct TpReply {
  std::uint64_t request = 0, size_bytes = 0;
  double waited_s = 0;              ///< for the version to be there
  std::int64_t code = 0;            ///< ExitCode; ok, or why there is nothing
  std::array<char, 512> message{};  ///< in words
  std::array<char, 256> hint{};     ///< what to do about it
};
static_assert(std::is_trivially_copyable_v<TpReply>);

/// Commands from the first rank of a replica to the others, and their replies: point to point, a star, over a
/// communicator of its own, so that two channels never get in each other's way. One thread at a time on each rank.
/// After an Error on the first rank the channel is lost.
class CommandChannel {
 public:
  /// Collective over `replica`.
  CommandChannel(const Communicator& replica, Deadline deadline);

  /// First rank: to all others. Does not wait until they have begun.
  void send(const TpCommand& command, Deadline deadline) const;
  /// First rank: the reply of `rank`, and its bytes. Error(deadline), reach lost, naming the rank.
  TpReply collect(int rank, std::vector<std::byte>& payload, Deadline deadline) const;

  /// Other ranks: the next command. Waits for as long as it takes, because an idle engine is no error; nothing when
  /// `stop` was requested.
  std::optional<TpCommand> next(const std::stop_token& stop) const;
  /// Waits until a command is there, so that next() does not wait; false when none came until `deadline`.
  bool arrived(Deadline deadline) const;
  void reply(TpReply reply, std::span<const std::byte> payload, Deadline deadline) const;

 private:
  Communicator comm_;
};

}  // namespace weightcast
