#include "output/update_table.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "weightcast/core/bytes.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/plan/roster.hpp"

namespace weightcast {

void print_update_header(const Report& report, const std::string& initial, const std::string& target,
                         VerifyChoice verify, DeltaChoice delta, const std::string& notes) {
  fmt::print("# weightcast update: {} ({} parameters, {}), {}\n", report.model.family, report.model.parameters,
             format_size(report.model.bytes), describe(Roster{report.trainers, report.tp, report.dp}));
  if (report.trainers > 1) fmt::print("# source layout {}\n", report.source_layout);
  fmt::print("# from {} to {}; memory {}, transport {}, method {}, granularity {}, commit {}, verify {}\n", initial,
             target, report.device, report.transport, report.method, report.granularity, report.commit,
             name_of(verify));
  if (!notes.empty()) fmt::print("# not used: {}\n", notes);
  for (const auto& note : report.notes) fmt::print("# note: {}\n", printable(note, 1000));
  fmt::print("# group formed in {:.3f} s, warmed up in {:.3f} s\n", report.group.init_s, report.group.warmup_s);
  if (report.group.delta_bytes != 0)
    fmt::print("# deltas take up to {} of a rank's memory\n", format_size(report.group.delta_bytes));
  fmt::print("{:>7} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8}{}\n", "update", "version",
             "result", "prepare ms", "stage ms", "verify ms", "vote ms", "commit ms", "total ms", "GB/s", "egress",
             delta == DeltaChoice::off ? "" : payload_titles());
  std::fflush(stdout);
}

void print_update_row(const ReportUpdate& row, std::uint64_t model_bytes, DeltaChoice delta) {
  if (!ready_to_print()) return;
  const auto bytes = static_cast<double>(model_bytes);
  fmt::print("{:>7} {:>8} {:>10} {:>10.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>8.2f} {:>8.3f}{}\n",
             row.id, row.version, row.result, row.prepare_s * 1e3, row.stage_s * 1e3, row.verify_s * 1e3,
             row.vote_s * 1e3, row.commit_s * 1e3, row.total_s * 1e3, bytes / row.total_s / 1e9,
             static_cast<double>(row.egress_bytes) / bytes,
             delta == DeltaChoice::off ? "" : payload_columns(row.sent, row.egress_bytes, model_bytes));
  std::fflush(stdout);
}

std::string payload_titles() {
  return fmt::format(" {:>7} {:>9} {:>9} {:>9} {:>9}", "payload", "shipped", "changed %", "diff ms", "apply ms");
}

std::string payload_columns(const ReportPayload& sent, std::uint64_t egress_bytes, std::uint64_t model_bytes) {
  if (sent.payload != "delta")
    return fmt::format(" {:>7} {:>9} {:>9} {:>9} {:>9}", sent.payload, format_size(egress_bytes), "-", "-", "-");
  constexpr double unit_bytes = 2;
  return fmt::format(" {:>7} {:>9} {:>9.3f} {:>9.3f} {:>9.3f}", sent.payload, format_size(sent.shipped_bytes),
                     100 * unit_bytes * static_cast<double>(sent.changed_elements) / static_cast<double>(model_bytes),
                     sent.diff_s * 1e3, sent.apply_s * 1e3);
}

void print_trainer_egress(const std::vector<std::uint64_t>& bytes, std::uint64_t model_bytes) {
  if (bytes.size() < 2) return;
  fmt::print("# egress by trainer rank:");
  for (const auto one : bytes) fmt::print(" {:.3f}", static_cast<double>(one) / static_cast<double>(model_bytes));
  fmt::print("\n");
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
