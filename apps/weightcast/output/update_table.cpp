#include "output/update_table.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <functional>

#include "weightcast/core/bytes.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/plan/roster.hpp"
#include "weightcast/telemetry/statistics.hpp"

namespace weightcast {
namespace {

Table table_of(const UpdateOptions& options) {
  std::vector<Column> columns = {{"update", 6}, {"version", 7}, {"result", 9},   {"prepare", 8, 5},
                                 {"stage", 8},  {"verify", 8},  {"vote", 8, 3},  {"commit", 8, 1},
                                 {"total", 8},  {"GB/s", 7},    {"egress", 6, 6}};
  if (options.delta != DeltaChoice::off) {
    for (auto& column : payload_columns()) columns.push_back(std::move(column));
  }
  return {std::move(columns), options.wide};
}

/// `cells` are those of update, version and result.
std::string row_of(const ReportUpdate& row, std::vector<std::string> cells, const Report& report,
                   const UpdateOptions& options) {
  const auto bytes = static_cast<double>(report.model.bytes);
  for (const double seconds : {row.prepare_s, row.stage_s, row.verify_s, row.vote_s, row.commit_s, row.total_s})
    cells.push_back(milliseconds(seconds));
  cells.push_back(fmt::format("{:.2f}", bytes / row.total_s / 1e9));
  cells.push_back(fmt::format("{:.3f}", static_cast<double>(row.egress_bytes) / bytes));
  if (options.delta != DeltaChoice::off) {
    for (auto& cell : payload_cells(row.sent, row.egress_bytes, report.model.bytes)) cells.push_back(std::move(cell));
  }
  return table_of(options).row(cells);
}

template <typename Values, typename Member>
double median_of(const Values& all, Member member) {
  std::vector<double> values;
  for (const auto& one : all) values.push_back(static_cast<double>(std::invoke(member, one)));
  return median(values);
}

/// Of updates of which some may have been dense: what left the trainer counts for all of them, the rest for deltas.
ReportPayload median_payload(const std::vector<ReportUpdate>& updates) {
  std::vector<ReportPayload> deltas;
  for (const auto& update : updates) {
    if (update.sent.payload == "delta") deltas.push_back(update.sent);
  }
  if (deltas.empty()) return updates.back().sent;
  const auto shipped = [](const ReportUpdate& update) {
    return update.sent.payload == "delta" ? update.sent.shipped_bytes : update.egress_bytes;
  };
  return {.payload = deltas.size() == updates.size() ? "delta" : "mixed",
          .shipped_bytes = static_cast<std::uint64_t>(median_of(updates, shipped)),
          .changed_elements = static_cast<std::uint64_t>(median_of(deltas, &ReportPayload::changed_elements)),
          .diff_s = median_of(deltas, &ReportPayload::diff_s),
          .apply_s = median_of(deltas, &ReportPayload::apply_s)};
}

}  // namespace

void print_update_header(const Report& report, const UpdateOptions& options, const std::string& initial,
                         const std::string& target, const std::string& notes) {
  const auto line = [](const std::string& text) { fmt::print("{}", header_line(text)); };
  line(fmt::format("weightcast update: {} ({} parameters, {}) from {} to {}", report.model.family,
                   report.model.parameters, format_size(report.model.bytes), printable(initial), printable(target)));
  line(fmt::format("{}, memory {}, transport {}", describe(Roster{report.trainers, report.tp, report.dp}),
                   report.device, report.transport));
  if (report.trainers > 1) line(fmt::format("source layout {}", report.source_layout));
  line(fmt::format("method {}, granularity {}, commit {}, verify {}", report.method, report.granularity, report.commit,
                   name_of(options.verify)));
  if (!notes.empty()) line("not used: " + notes);
  for (const auto& note : report.notes) line("note: " + printable(note, 1000));
  line(fmt::format("group formed in {:.3f} s, warmed up in {:.3f} s", report.group.init_s, report.group.warmup_s));
  if (report.group.delta_bytes != 0)
    line(fmt::format("deltas take up to {} of a rank's memory", format_size(report.group.delta_bytes)));
  const auto table = table_of(options);
  line("times in ms" + table.note());
  fmt::print("{}", table.head());
  std::fflush(stdout);
}

void print_update_row(const Report& report, const UpdateOptions& options) {
  if (!ready_to_print()) return;
  const auto& row = report.updates.back();
  fmt::print("{}", row_of(row, {fmt::to_string(row.id), fmt::to_string(row.version), row.result}, report, options));
  std::fflush(stdout);
}

void print_update_median(const Report& report, const UpdateOptions& options) {
  std::vector<ReportUpdate> committed;
  for (const auto& update : report.updates) {
    if (update.result == "committed") committed.push_back(update);
  }
  if (committed.size() < 2 || !ready_to_print()) return;
  ReportUpdate row = committed.back();
  for (const auto member : {&ReportUpdate::prepare_s, &ReportUpdate::stage_s, &ReportUpdate::verify_s,
                            &ReportUpdate::vote_s, &ReportUpdate::commit_s, &ReportUpdate::total_s})
    row.*member = median_of(committed, member);
  row.egress_bytes = static_cast<std::uint64_t>(median_of(committed, &ReportUpdate::egress_bytes));
  row.sent = median_payload(committed);
  fmt::print("{}", row_of(row, {"median", "-", fmt::format("of {}", committed.size())}, report, options));
  const auto all = summarize(report.updates, report.model.bytes);
  fmt::print("{}",
             header_line(fmt::format("total: cold (the first) {}, min {}, max {}, p99 {}", milliseconds(all.cold_s),
                                     milliseconds(all.min_s), milliseconds(all.max_s), milliseconds(all.p99_s))));
}

std::vector<Column> payload_columns() {
  return {{"payload", 7}, {"shipped", 8}, {"changed %", 9, 9}, {"diff", 8, 2}, {"apply", 8, 4}};
}

std::vector<std::string> payload_cells(const ReportPayload& sent, std::uint64_t egress_bytes,
                                       std::uint64_t model_bytes) {
  if (sent.payload.empty() || sent.payload == "dense") return {sent.payload, format_size(egress_bytes), "-", "-", "-"};
  constexpr double unit_bytes = 2;
  const double changed = unit_bytes * static_cast<double>(sent.changed_elements) / static_cast<double>(model_bytes);
  return {sent.payload, format_size(sent.shipped_bytes), fmt::format("{:.3f}", 100 * changed),
          milliseconds(sent.diff_s), milliseconds(sent.apply_s)};
}

void print_trainer_egress(const std::vector<std::uint64_t>& bytes, std::uint64_t model_bytes) {
  if (bytes.size() < 2) return;
  std::string line = "egress by trainer rank:";
  for (const auto one : bytes)
    line += fmt::format(" {:.3f}", static_cast<double>(one) / static_cast<double>(model_bytes));
  fmt::print("{}", header_line(line));
}

void print_update_summary(const Report& report, VerifyChoice verify) {
  if (!report.updates.empty()) print_trainer_egress(report.updates.back().trainer_egress_bytes, report.model.bytes);
  if (!report.verify.digest.empty()) fmt::print("# digest {}\n", report.verify.digest);
  if (verify == VerifyChoice::none) {
    fmt::print("nothing verified (--verify none)\n");
    return;
  }
  fmt::print("{} of {} parameters verified{}\n", report.verify.parameters - report.verify.mismatched,
             report.model.parameters, verify == VerifyChoice::sample ? " by sample" : "");
}

}  // namespace weightcast
