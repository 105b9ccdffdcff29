#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string_view>

#include "weightcast/engine/tp_worker.hpp"
#include "weightcast/update/admission.hpp"

namespace weightcast {

/// Admission: which calls are in order, and which have to go away. A refusal is immediate and says what was wrong.
/// Error(config) for a call out of order: before join(), on another rank than it belongs to, after shutdown().
/// Error(busy) for an update while another one is active.
class Scheduler {
 public:
  explicit Scheduler(TpWorker& worker, std::size_t tp_rank) : worker_(&worker), tp_rank_(tp_rank) {}

  /// Throws unless a group may be formed now; `verb` is what the caller wants to do.
  void expect_no_group(std::string_view verb) const;
  /// From now on requests are taken. Collective over the replica.
  void join(std::unique_ptr<UpdateGroup> group, Driver driver);
  /// Error(config) before join().
  UpdateGroup& group() const;

  // First rank of the replica; thread-safe. Or every rank (see Driver).
  /// `version` is what the caller asks for, or any_version; another one is refused on all ranks before anything moves.
  /// Nothing when the trainer has left.
  std::optional<UpdateResult> update(std::string_view verb, std::uint64_t version, UpdateWait wait, bool empty_cache,
                                     CheckClaim check);
  WeightRows rows(std::size_t parameter, std::uint64_t rows);
  Probe probe(std::span<const std::size_t> parameters);
  Scrub scrub();
  /// Refuses new requests, waits for those under way, then ends serve() on the other ranks.
  void shutdown();

  /// Other ranks: works for the first rank until its shutdown().
  void serve();

  LayerTimes times{"scheduler"}, read_times{"scheduler"};  // of updates, of reads
  LayerTimes scrub_times{"scheduler"};

 private:
  enum class Phase { alone, serving, ended };
  /// Throws unless this rank takes requests now.
  void expect_serving(std::string_view verb) const;

  TpWorker* worker_;
  std::size_t tp_rank_;
  Driver driver_ = Driver::first_rank;
  std::unique_ptr<UpdateGroup> group_;
  std::atomic<Phase> phase_{Phase::alone};
  std::shared_mutex under_way_;  // shared: by requests
  Admission admission_;
  std::atomic<std::uint64_t> open_version_{any_version};  // parameters of it are still missing
};

}  // namespace weightcast
