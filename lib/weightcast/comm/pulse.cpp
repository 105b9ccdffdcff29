#include "weightcast/comm/pulse.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "weightcast/comm/message.hpp"
#include "weightcast/comm/reason.hpp"

namespace weightcast {
namespace {

constexpr int tag_pulse = 9005;

/// Between two beats: often enough that a few may come late.
std::chrono::duration<double> interval(double silence_s) {
  constexpr double longest_s = 0.5, beats = 10;
  return std::chrono::duration<double>(std::min(longest_s, silence_s / beats));
}

constexpr char beat_byte = 1;  // outlives a message that is still under way

/// Whom a rank speaks to, and when it last heard of them.
struct Peer {
  int rank = 0;
  Message sent;
  Deadline::Clock::time_point heard = Deadline::Clock::now();

  void speak_and_listen(const Communicator& comm) {
    // One that does not take its messages is sent no more of them.
    if (sent.done()) sent = Message::send(comm, bytes_of(beat_byte), rank, tag_pulse);
    while (message_waits(comm, rank, tag_pulse)) {
      char theirs = 0;
      Message::receive(comm, writable_bytes_of(theirs), rank, tag_pulse).wait(Deadline::after(1), "a pulse");
      heard = Deadline::Clock::now();
    }
  }
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
      try {
        peer.speak_and_listen(*comm_);
      } catch (const Error&) {  // NOLINT(bugprone-empty-catch): its silence will tell
      }
      const std::chrono::duration<double> quiet = Deadline::Clock::now() - peer.heard;
      if (quiet.count() > silence_s_ && silent_ < 0) silent_ = peer.rank;
    }
  } while (!wake.wait_for(lock, stop, interval(silence_s_), [&] { return stop.stop_requested(); }));
}

}  // namespace weightcast
