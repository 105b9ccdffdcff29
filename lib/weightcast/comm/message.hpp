#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>

#include "weightcast/comm/communicator.hpp"

namespace weightcast {

/// Owner of one message from rank to rank that is under way: its bytes must stay where they are until it is done. One
/// that is not done when its owner goes is given up. Allocates nothing; MPI errors are Error(unavailable).
class Message {
 public:
  /// None: done.
  Message() noexcept = default;
  /// Begins to send to, or to receive from, rank `peer` of `comm`, which must outlive this. At most 1 GiB. Local.
  static Message send(const Communicator& comm, std::span<const std::byte> bytes, int peer, int tag);
  static Message receive(const Communicator& comm, std::span<std::byte> bytes, int peer, int tag);
  Message(Message&& other) noexcept;
  Message& operator=(Message&& other) noexcept;
  ~Message();

  /// Looks; does not wait.
  bool done();
  /// Error(deadline) naming `what` when it is not done in time. `idle`: see wait_all().
  void wait(Deadline deadline, std::string_view what, FunctionRef<bool()> idle = {});

 private:
  explicit Message(const Communicator& comm) noexcept : comm_(&comm) {}
  const Communicator* comm_ = nullptr;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

/// Whether a message of that rank and tag is there to be received. Does not wait.
bool message_waits(const Communicator& comm, int peer, int tag);

/// Plain data as what a message carries.
template <typename T>
std::span<const std::byte> bytes_of(const T& value) noexcept {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span(&value, 1));
}
template <typename T>
std::span<std::byte> writable_bytes_of(T& value) noexcept {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_writable_bytes(std::span(&value, 1));
}

}  // namespace weightcast
