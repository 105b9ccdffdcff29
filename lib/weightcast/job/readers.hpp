#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "weightcast/engine/engine.hpp"
#include "weightcast/job/layer_study.hpp"
#include "weightcast/telemetry/report.hpp"

namespace weightcast {

/// What the readers of one engine saw.
struct ReadersSeen {
  struct Layer {
    std::uint64_t calls = 0;
    double median_s = unknown, p99_s = unknown;
  };
  struct Figures {
    std::uint64_t reads = 0, mixed = 0, stale = 0;
    double idle_p50_s = unknown, idle_p99_s = unknown, updating_p50_s = unknown, updating_p99_s = unknown;
    double reads_per_s = 0;
    std::array<Layer, request_layers.size()> layers;
  };
  Figures figures;
  std::vector<double> pauses_s;  ///< of each update, the longest
};

/// Load on an engine: threads on tp rank 0 of a replica that read at full rate, whole-model probes and rows of single
/// parameters in turn, and check every answer.
class Readers {
 public:
  /// Starts `count` threads and returns when they have read for a moment while nothing else happens (a second at most).
  /// None for 0.
  Readers(Engine& engine, const Model& model, std::uint64_t count);

  /// The caller of the updates says when one begins, and how it ended (nothing: it was refused).
  void update_begins();
  void update_ended(const std::optional<UpdateResult>& result);

  /// Ends the threads. What they saw, for gather_readers(). Throws what a reader met.
  ReadersSeen stop();

 private:
  using Key = std::pair<std::uint64_t, std::int64_t>;  // version, and parameter or -1 for the whole model
  void read(const std::stop_token& stop, std::size_t reader);
  /// Holds an answer against the others of the same version.
  void check(const Key& key, const Digest& digest);
  void note(const Stopwatch& watch, double waited_s, bool updating, bool stale);

  Engine& engine_;
  const Model& model_;
  std::uint64_t count_;
  std::atomic<std::uint64_t> served_{0};
  std::atomic<bool> updating_{false};

  LayerTimes idle_{"idle"}, updating_times_{"updating"};
  std::mutex mutex_;  // of what follows
  std::vector<double> pauses_s_;
  double longest_wait_s_ = 0;
  std::uint64_t reads_ = 0, mixed_ = 0, stale_ = 0;
  std::map<Key, Digest> digests_;
  std::optional<Error> failure_;

  Stopwatch watch_;
  std::vector<std::jthread> threads_;  // last: they use the members above
};

/// Sums up what the readers of all engines saw, `count` on each: counts are added, times are those of the slowest
/// engine. Sets pause_s of `updates`. `seen` is there on ranks that had readers. Collective; the same on all ranks.
ReportReaders gather_readers(const Communicator& world, const std::optional<ReadersSeen>& seen, std::uint64_t count,
                             std::vector<ReportUpdate>& updates, Deadline deadline);
/// For the table: header lines that fit 80 columns.
std::string describe(const ReportReaders& readers);
/// Error(mismatch), known to everybody, if any answer was mixed or stale.
void check_readers(const ReportReaders& readers);

}  // namespace weightcast
