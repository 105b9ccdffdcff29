#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/function_ref.hpp"
#include "weightcast/job/side.hpp"
#include "weightcast/telemetry/report.hpp"
#include "weightcast/telemetry/trace.hpp"

/// What every rank of a job did during its updates, layer by layer, on one clock: for --trace.
namespace weightcast {

/// How much later another rank's clock is than rank 0's: something between the two.
struct ClockOffset {
  std::int64_t low_ns = 0, high_ns = 0;

  std::int64_t estimate_ns() const noexcept { return low_ns + (high_ns - low_ns) / 2; }
  std::int64_t error_ns() const noexcept { return (high_ns - low_ns + 1) / 2; }
};

/// What barriers say of two clocks. Each list has, on the clock of one rank, when it came to each barrier and when it
/// left it; nobody leaves before everybody has come. Pure.
ClockOffset offset_between(std::span<const std::int64_t> first, std::span<const std::int64_t> other);

/// The calls that layers keep, of all ranks or, until these have come together, of this one. Of each layer the last
/// ones, so many that all ranks together have no more than `most_spans`. Layers note them for the report anyway: a job
/// that is traced is no slower.
class Timeline {
 public:
  static constexpr std::uint64_t most_spans = 200'000;

  /// `wanted` on any rank is on all. Times count from now.
  explicit Timeline(bool wanted) : wanted_(wanted) {}

  /// Runs `updates`, then brings the spans of all ranks to rank 0, also when `updates` throws what all ranks know of
  /// (Error::Reach::everybody). Clocks are compared before and after, so that their drift is in the error. Collective.
  /// `side` must outlive this.
  void record(const Job& job, const Side& side, const std::vector<ReportRank>& ranks, Granularity granularity,
              FunctionRef<void()> updates);

  /// As to_trace_json() has it. On any thread: with what there is.
  std::string to_json() const;

 private:
  struct Span;
  /// What this rank's layers keep.
  std::vector<Span> own() const;
  TraceRank show(int rank, std::span<const Span> spans, const ClockOffset& offset) const;
  void gather(const Job& job, std::span<const ClockOffset> before);

  bool wanted_;
  Stopwatch begun_;
  mutable std::mutex mutex_;  // of what follows: a watchdog may write the trace
  const Side* side_ = nullptr;
  std::vector<ReportRank> ranks_;
  int rank_ = 0;
  Granularity granularity_ = Granularity::model;
  std::vector<TraceRank> gathered_;
};

}  // namespace weightcast
