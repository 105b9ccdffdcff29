#include "weightcast/comm/pulse.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "weightcast/comm/reason.hpp"

namespace weightcast {
namespace {

constexpr int tag_pulse = 9005;

/// Between two beats: often enough that a few may come late.
std::chrono::duration<double> interval(double silence_s) {
  constexpr double longest_s = 0.5, beats = 10;
  return std::chrono::duration<double>(std::min(longest_s, silence_s / beats));
}

/// Whom a rank speaks to, and when it last heard of them.
struct Peer {
  int rank = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  Deadline::Clock::time_point heard = Deadline::Clock::now();
};

}  // namespace

Pulse::Pulse(const Communicator& comm, std::string stage, double silence_s)
    : comm_(&comm), stage_(std::move(stage)), silence_s_(silence_s) {
  if (comm.size() > 1) thread_ = std::jthread([this](const std::stop_token& stop) { beat(stop); });
}

Pulse::~Pulse() = default;

void Pulse::check() const {
  if (const int rank = silent_.load(std::memory_order_relaxed); rank >= 0) throw silence(rank, stage_);
}

void Pulse::beat(const std::stop_token& stop) noexcept {
  static constexpr char beat = 1;  // outlives a message that is still under way
  std::vector<Peer> peers(comm_->rank() == 0 ? static_cast<std::size_t>(comm_->size()) - 1 : 1);
  if (comm_->rank() == 0) {
    for (std::size_t i = 0; i < peers.size(); ++i) peers[i].rank = static_cast<int>(i) + 1;
  }
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  auto last = Deadline::Clock::now();
  do {
    // Time in which this process itself was stopped is nobody's silence.
    const auto now = Deadline::Clock::now();
    const auto late = now - last - std::chrono::duration_cast<Deadline::Clock::duration>(2 * interval(silence_s_));
    last = now;
    for (auto& peer : peers) {
      if (late.count() > 0) peer.heard += late;
      // One that does not take its messages is sent no more of them.
      int taken = 1, waiting = 0;
      MPI_Test(&peer.request, &taken, MPI_STATUS_IGNORE);
      if (taken != 0) MPI_Isend(&beat, 1, MPI_CHAR, peer.rank, tag_pulse, comm_->get(), &peer.request);
      while (MPI_Iprobe(peer.rank, tag_pulse, comm_->get(), &waiting, MPI_STATUS_IGNORE), waiting != 0) {
        char theirs = 0;
        MPI_Recv(&theirs, 1, MPI_CHAR, peer.rank, tag_pulse, comm_->get(), MPI_STATUS_IGNORE);
        peer.heard = Deadline::Clock::now();
      }
      const std::chrono::duration<double> quiet = Deadline::Clock::now() - peer.heard;
      if (quiet.count() > silence_s_ && silent_ < 0) silent_ = peer.rank;
    }
  } while (!wake.wait_for(lock, stop, interval(silence_s_), [&] { return stop.stop_requested(); }));
  for (auto& peer : peers) {
    int taken = 0;
    if (MPI_Test(&peer.request, &taken, MPI_STATUS_IGNORE), taken == 0) MPI_Request_free(&peer.request);
  }
}

}  // namespace weightcast
