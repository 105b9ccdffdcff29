#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/engine/command_channel.hpp"
#include "weightcast/engine/model_runner.hpp"

namespace weightcast {

/// Weights as a request finds them: all of one version, on all ranks of the replica.
struct WeightRows {
  std::uint64_t version = 0;
  std::vector<float> values;
  double waited_s = 0;  ///< the longest that any rank waited to pin the version
};

/// What a request that touches weights sees of them: the stand-in for a forward pass.
struct Probe {
  std::uint64_t version = 0;
  Digest digest;
  double waited_s = 0;
};

/// What a scrub that found nothing has looked at.
struct Scrub {
  std::uint64_t version = 0;
  bool proven = false;  ///< false: that version was committed without proof, so there was nothing to compare with
};

/// Who calls the verbs of an engine.
enum class Driver : std::uint8_t {
  first_rank,  ///< tp rank 0 alone, from any number of threads; the other ranks serve() it
  every_rank,  ///< each rank for itself, all the same verbs in the same order, from one thread: collective
};

/// A mutex that serves in the order of arrival: readers at full rate must not starve each other. Basic lockable.
class FairMutex {
 public:
  void lock() {
    std::unique_lock lock(mutex_);
    const auto ticket = arrived_++;
    changed_.wait(lock, [&] { return ticket == served_; });
  }
  void unlock() {
    {
      const std::scoped_lock lock(mutex_);
      ++served_;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t arrived_ = 0, served_ = 0;
};

/// One rank of a tensor-parallel replica: what needs its neighbours. The first rank asks, the others serve(). Updates,
/// reads and scrubs have a channel each, so that a read never waits for the others. Where every rank is driven there
/// are none.
///
/// A scrub is answered as a read is.
///
/// A read is answered from one version on all ranks: the first rank pins what it serves and keeps the pin until
/// everybody has answered; the others pin that version by its id (ParameterStore says why they find it). Every rank
/// lets go of its pin before it answers.
class TpWorker {
 public:
  TpWorker(const TransferPlan& plan, ModelRunner& runner) : plan_(&plan), runner_(&runner) {}

  /// Opens the channels. Collective over the replica of `group`, which must outlive the worker or the next connect().
  void connect(UpdateGroup& group, Driver driver);

  // First rank. Only one update() at a time; reads are thread-safe and take turns, as an engine's forward passes do; so
  // do scrubs, beside them.
  /// Takes part in the trainer's next update; nothing when it has left. Collective over the update group.
  std::optional<UpdateResult> update(UpdateWait wait, bool empty_cache, CheckClaim check);
  /// The first rows of a parameter, from all shards, unfused, as float.
  WeightRows rows(std::size_t parameter, std::uint64_t rows);
  /// Digest of those parameters, or of the whole model when there are none, from what the slots hold.
  Probe probe(std::span<const std::size_t> parameters);
  /// Every rank's slot against its proof.
  Scrub scrub();
  /// Ends serve() on the other ranks. Nothing else may be under way.
  void release();

  // Other ranks.
  /// Does what the first rank asks for until release(): updates on this thread, reads and scrubs on one each. A refused
  /// update is no error here, the first rank answers for it; a lost rank is (see Error::Reach).
  void serve();

  LayerTimes times{"tp_worker"}, read_times{"tp_worker"};  // of updates, of reads
  LayerTimes scrub_times{"tp_worker"};

 private:
  struct Reading;
  /// The first rank's way to the others for requests that take turns; on the others where they come from.
  struct Line {
    std::string_view stage;
    std::optional<CommandChannel> channel = {};  // with more than one rank
    FairMutex turn = {};
    std::uint64_t requests = 0;
    std::string lost = {};  // why it cannot be used any more
    void open(const Communicator* replica, Deadline deadline);
  };
  Deadline deadline() const noexcept { return Deadline::after(group_->options().timeout_s); }
  /// For another rank's part of a read: it has to say in time that it waited in vain.
  Deadline pin_deadline() const noexcept { return Deadline::after(0.8 * group_->options().timeout_s); }
  std::vector<std::byte> part(const TpCommand& command, const ParameterStore::Pin& pin);
  std::unique_ptr<Reading> begin_reading(Line& line, std::string_view verb);
  /// Every rank's part, by tp rank.
  std::vector<std::vector<std::byte>> gather(TpCommand command, Reading& reading);
  void add_digests(std::span<Digest> sums, std::size_t first, Reading& reading);
  void serve_line(const Line& line, LayerTimes& line_times, const std::stop_token& stop);

  const TransferPlan* plan_;
  ModelRunner* runner_;
  UpdateGroup* group_ = nullptr;
  Driver driver_ = Driver::first_rank;
  std::optional<CommandChannel> control_;  // with more than one rank
  Line reads_{"read"}, scrubs_{"scrub"};
};

}  // namespace weightcast
