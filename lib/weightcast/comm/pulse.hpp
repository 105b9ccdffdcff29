#pragma once

#include <atomic>
#include <stop_token>
#include <string>
#include <thread>

#include "weightcast/comm/communicator.hpp"

namespace weightcast {

/// For stages that may take longer than any rank may be silent (reading a checkpoint, writing a snapshot): slow is not
/// dead. While it lives, a thread tells rank 0 that this process runs (rank 0 tells everybody) and notes who has fallen
/// silent. Needs MPI_THREAD_MULTIPLE. Every rank of `comm` has one for the same stage; `comm` must outlive it.
class Pulse {
 public:
  /// A rank that is not heard of for `silence_s` is lost. `stage` is for the message.
  Pulse(const Communicator& comm, std::string stage, double silence_s);
  Pulse(Pulse&&) = delete;
  ~Pulse();

  /// Error(deadline), reach lost, naming the rank that has fallen silent: rank 0 hears of all, the others of rank 0.
  /// Cheap; for work that goes on and for agree()'s watch. Thread-safe.
  void check() const;

 private:
  void beat(const std::stop_token& stop) noexcept;

  const Communicator* comm_;
  std::string stage_;
  double silence_s_;
  std::atomic<int> silent_{-1};
  std::jthread thread_;  // last: it uses the members above
};

}  // namespace weightcast
