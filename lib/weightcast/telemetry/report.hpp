#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/telemetry/statistics.hpp"

/// What `update` and `bench` write with --json: the schema weightcast.report/1 (report.md), as plain values. Members
/// carry the names of the JSON keys; times are seconds, rates 10^9 bytes per second. What is not known is NaN here and
/// null in the file, or an empty string.
namespace weightcast {

struct ReportVersions {
  std::string weightcast, mpi, nccl, cuda, hdf5;
};

/// What was sent for a version, and what that took beside the stages.
struct ReportPayload {
  std::string payload;                                    ///< "dense", "delta"; empty (null) of an update that failed
  std::uint64_t shipped_bytes = 0, changed_elements = 0;  ///< of all trainer ranks; 0 of a dense one
  double diff_s = unknown, apply_s = unknown;             ///< of the slowest trainer rank, first rank of an engine
};

struct ReportUpdate {
  std::uint64_t id = 0, version = 0;
  std::string result;  ///< "committed", "aborted", "unchanged", "dirty"
  double total_s = unknown, prepare_s = unknown, stage_s = unknown, verify_s = unknown, vote_s = unknown;
  double commit_s = unknown, pause_s = unknown;
  std::uint64_t egress_bytes = 0, staging_bytes = 0;
  std::vector<std::uint64_t> trainer_egress_bytes;  ///< of each trainer rank; egress_bytes in all
  ReportPayload sent = {};                          ///< its keys stand among the others
};

struct ReportSummary {
  double cold_s = unknown, median_s = unknown, min_s = unknown, max_s = unknown, p99_s = unknown;
  double model_GBps = unknown, ceiling_GBps = unknown, ratio_to_ceiling = unknown;
};

/// Summary of the committed updates of a model of `model_bytes`: the first is the cold one and counts in all figures.
ReportSummary summarize(const std::vector<ReportUpdate>& updates, std::uint64_t model_bytes);

/// Full digests of what engines serve, between updates, that have found nothing: how long each took the slowest engine.
/// In the summary: how many, and their median.
struct ReportScrubs {
  std::vector<double> seconds;
};

/// The reads in one layer of the request path, the layers below it included.
struct ReportReadLayer {
  std::string layer;
  std::uint64_t calls = 0;
  double median_s = unknown, p99_s = unknown;
};

struct ReportReaders {
  std::uint64_t count = 0, reads = 0, mixed = 0, stale = 0;
  double idle_p50_s = unknown, idle_p99_s = unknown, updating_p50_s = unknown, updating_p99_s = unknown;
  double reads_per_s = unknown;
  double pause_p99_s = unknown, pause_max_s = unknown;  ///< of the updates: the longest that a read waited to begin
  std::vector<ReportReadLayer> layers;                  ///< on the first engine: engine, ..., model_runner
};

/// Seconds of one call of a layer, the layers below it included; `own` without them. `first` is an update's first call.
struct ReportCalls {
  std::uint64_t calls = 0;
  double first_s = unknown, median_s = unknown, p99_s = unknown;
  double own_first_s = unknown, own_median_s = unknown, own_p99_s = unknown;
};

/// Summary of calls that took `seconds`, of which `below` (as many) in the layers below; whole updates, each of
/// `calls_per_update`.
ReportCalls summarize_calls(const std::vector<double>& seconds, const std::vector<double>& below,
                            std::size_t calls_per_update);

/// One layer of the request path, or one stage of the transaction in its lowest layer.
struct ReportLayer {
  std::string layer;
  ReportCalls cold, warm;  ///< of the first update, and of the later ones

  std::uint64_t calls() const noexcept { return cold.calls + warm.calls; }
  /// Of the warm calls, where there are any.
  double median_s() const noexcept { return warm.calls > 0 ? warm.median_s : cold.median_s; }
};

/// Where the time of a request goes: engine, scheduler, tp_worker, model_runner, each around the next one; and the
/// model runner's stages: prepare, stage, verify, vote, commit.
struct ReportPath {
  std::vector<ReportLayer> layers, stages;
};

struct ReportRank {
  int rank = 0;
  std::string role, host, gpu;  ///< `gpu` is empty (null) on the host
};

/// One line of `bench`.
struct ReportRow {
  std::string model;
  std::uint64_t model_bytes = 0;
  std::string device, transport, method, granularity;
  std::uint64_t trainers = 1, tp = 1, dp = 1;
  std::string source_layout, verify;
  double cold_s = unknown, median_s = unknown, min_s = unknown, max_s = unknown, p99_s = unknown, model_GBps = unknown;
  std::uint64_t egress_bytes = 0, staging_bytes = 0, wrong = 0;
  std::vector<std::uint64_t> trainer_egress_bytes;  ///< of each trainer rank; egress_bytes in all
  std::string commit;                               ///< "swap" or "in-place"
  std::string delta;                                ///< what was asked for: "off", "auto", "versions"
  double changed = 1;                               ///< share of the elements in which the versions differ
  ReportPayload sent = {};  ///< its keys stand among the others: of the last update, seconds the medians of all
  double ship_s = unknown;  ///< median of the stage in which bytes move
  double ceiling_GBps = unknown, ratio_to_ceiling = unknown;
  bool group_warmup = true;
  ReportPath path;  ///< in granularity parameter
  std::optional<ReportReaders> readers;
};

struct ReportError {
  ExitCode code = ExitCode::internal;
  std::string stage;  ///< empty (null) when unknown
  int rank = -1;      ///< -1 (null) when unknown
  std::string message;
};
ReportError report_error(const Error& error);

struct Report {
  std::string command;  ///< "update" or "bench": decides which of the members below are written
  ExitCode exit_code = ExitCode::ok;
  ReportVersions versions;
  std::optional<ReportError> error;
  std::vector<ReportRank> ranks;

  // update
  std::vector<std::string> notes;  ///< what people should know of the weights that were read
  std::uint64_t trainers = 1, tp = 1, dp = 1;
  std::string source_layout, device, transport, method, granularity, commit;
  struct {
    std::string family;
    std::uint64_t parameters = 0, bytes = 0;
  } model;
  struct {
    double init_s = unknown, warmup_s = unknown;
    std::uint64_t delta_bytes = 0;  ///< that deltas take on the rank that has most for them
  } group;
  /// The whole job on this rank, in its order; total_s from the start to here.
  struct {
    double load_s = unknown, group_s = unknown, updates_s = unknown, check_s = unknown, snapshot_s = unknown;
    double total_s = unknown;
  } phases;
  std::vector<ReportUpdate> updates;
  ReportSummary summary;
  std::optional<ReportScrubs> scrubs;  ///< when there should be any
  struct {
    std::string mode;
    std::uint64_t parameters = 0, mismatched = 0;
    std::string digest;
  } verify;
  ReportPath path;
  std::optional<ReportReaders> readers;

  // bench
  std::vector<ReportRow> rows;
};

/// The report as JSON text with a final newline, as report.md describes it: a line for each key and for each object of
/// a list; numbers as exact as they were measured. Bytes that are not UTF-8 are replaced.
std::string to_json(const Report& report);

/// Writes the report: under a temporary name, then renamed, or into a pipe (write_text_file()). Error(cant_create),
/// Error(io_error).
void write_report(const OutputName& name, const Report& report, Deadline deadline = Deadline::after(10));

}  // namespace weightcast
