#include "weightcast/telemetry/report.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;  // writes NaN as null

Json text_or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : Json(text);
}

template <typename T>
Json to_array(const std::vector<T>& items);

Json to_value(const ReportVersions& v) {
  return {{"weightcast", v.weightcast}, {"mpi", v.mpi}, {"nccl", v.nccl}, {"cuda", v.cuda}, {"hdf5", v.hdf5}};
}

/// Adds its keys to those of an update or a row.
Json with_payload(Json json, const ReportPayload& sent) {
  json["payload"] = text_or_null(sent.payload);
  json["shipped_bytes"] = sent.shipped_bytes;
  json["changed_elements"] = sent.changed_elements;
  json["diff_s"] = sent.diff_s;
  json["apply_s"] = sent.apply_s;
  return json;
}

Json to_value(const ReportUpdate& u) {
  Json update = {{"id", u.id},
                 {"version", u.version},
                 {"result", u.result},
                 {"total_s", u.total_s},
                 {"prepare_s", u.prepare_s},
                 {"stage_s", u.stage_s},
                 {"verify_s", u.verify_s},
                 {"vote_s", u.vote_s},
                 {"commit_s", u.commit_s},
                 {"pause_s", u.pause_s},
                 {"egress_bytes", u.egress_bytes},
                 {"staging_bytes", u.staging_bytes},
                 {"trainer_egress_bytes", u.trainer_egress_bytes}};
  return with_payload(std::move(update), u.sent);
}

Json to_value(const ReportSummary& s) {
  return {{"cold_s", s.cold_s},
          {"median_s", s.median_s},
          {"min_s", s.min_s},
          {"max_s", s.max_s},
          {"p99_s", s.p99_s},
          {"model_GBps", s.model_GBps},
          {"ceiling_GBps", s.ceiling_GBps},
          {"ratio_to_ceiling", s.ratio_to_ceiling}};
}

Json to_value(const ReportReadLayer& l) {
  return {{"layer", l.layer}, {"calls", l.calls}, {"median_s", l.median_s}, {"p99_s", l.p99_s}};
}

Json to_value(const ReportReaders& r) {
  return {{"count", r.count},
          {"reads", r.reads},
          {"mixed", r.mixed},
          {"stale", r.stale},
          {"reads_per_s", r.reads_per_s},
          {"idle_p50_s", r.idle_p50_s},
          {"idle_p99_s", r.idle_p99_s},
          {"updating_p50_s", r.updating_p50_s},
          {"updating_p99_s", r.updating_p99_s},
          {"pause_p99_s", r.pause_p99_s},
          {"pause_max_s", r.pause_max_s},
          {"layers", to_array(r.layers)}};
}

Json to_value(const ReportCalls& c) {
  return {{"calls", c.calls},        {"first_s", c.first_s},         {"median_s", c.median_s},
          {"p99_s", c.p99_s},        {"own_first_s", c.own_first_s}, {"own_median_s", c.own_median_s},
          {"own_p99_s", c.own_p99_s}};
}

Json to_value(const ReportLayer& l) {
  return {{"layer", l.layer},
          {"calls", l.calls()},
          {"median_s", l.median_s()},
          {"cold", to_value(l.cold)},
          {"warm", to_value(l.warm)}};
}

Json to_value(const ReportRank& r) {
  return {{"rank", r.rank}, {"role", r.role}, {"host", r.host}, {"gpu", text_or_null(r.gpu)}};
}

Json to_value(const ReportRow& r) {
  Json row = {{"model", r.model},
              {"model_bytes", r.model_bytes},
              {"device", r.device},
              {"transport", r.transport},
              {"method", r.method},
              {"granularity", r.granularity},
              {"trainers", r.trainers},
              {"tp", r.tp},
              {"dp", r.dp},
              {"source_layout", r.source_layout},
              {"verify", r.verify},
              {"cold_s", r.cold_s},
              {"median_s", r.median_s},
              {"min_s", r.min_s},
              {"max_s", r.max_s},
              {"p99_s", r.p99_s},
              {"model_GBps", r.model_GBps},
              {"egress_bytes", r.egress_bytes},
              {"staging_bytes", r.staging_bytes},
              {"trainer_egress_bytes", r.trainer_egress_bytes},
              {"commit", r.commit},
              {"delta", r.delta},
              {"changed", r.changed},
              {"ship_s", r.ship_s},
              {"wrong", r.wrong},
              {"ceiling_GBps", r.ceiling_GBps},
              {"ratio_to_ceiling", r.ratio_to_ceiling},
              {"group_warmup", r.group_warmup}};
  row = with_payload(std::move(row), r.sent);
  if (!r.path.layers.empty()) {
    row["layers"] = to_array(r.path.layers);
    row["stages"] = to_array(r.path.stages);
  }
  if (r.readers) row["readers"] = to_value(*r.readers);
  return row;
}

Json to_value(const ReportError& e) {
  return {{"code", static_cast<int>(e.code)},
          {"stage", text_or_null(e.stage)},
          {"rank", e.rank < 0 ? Json(nullptr) : Json(e.rank)},
          {"message", e.message}};
}

/// What was measured of a number, by the name that it has: seconds to the nanosecond, rates to five digits and ratios
/// to four. Everything else is exact.
double rounded(std::string_view key, double value) {
  if (!std::isfinite(value)) return value;
  if (key.ends_with("_per_s") || key.ends_with("_GBps")) return std::stod(fmt::format("{:.5g}", value));
  if (key.starts_with("ratio_")) return std::stod(fmt::format("{:.4g}", value));
  return key.ends_with("_s") ? std::round(value * 1e9) / 1e9 : value;
}

std::string text_of(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string layout(std::string_view key, const Json& value, std::size_t indent);

/// Members as `"key": value`, or elements, with `separator` between them.
std::string joined(const Json& values, std::string_view separator, std::size_t indent) {
  std::string text;
  for (const auto& item : values.items()) {
    if (!text.empty()) text += separator;
    if (values.is_object()) text += text_of(item.key()) + ": ";
    text += layout(values.is_object() ? item.key() : "", item.value(), indent);
  }
  return text;
}

/// On one line, but for lists of objects: each of these has its own.
std::string layout(std::string_view key, const Json& value, std::size_t indent) {
  if (value.is_number_float()) return text_of(rounded(key, value.get<double>()));
  if (value.is_object()) return fmt::format("{{{}}}", joined(value, ", ", indent));
  if (!value.is_array()) return text_of(value);
  if (value.empty() || !value.front().is_object()) return fmt::format("[{}]", joined(value, ", ", indent));
  const auto line = fmt::format("\n{:{}}", "", indent + 2);
  return fmt::format("[{}{}\n{:{}}]", line, joined(value, "," + line, indent + 2), "", indent);
}

template <typename T>
Json to_array(const std::vector<T>& items) {
  Json array = Json::array();
  for (const T& item : items) array.push_back(to_value(item));
  return array;
}

}  // namespace

ReportError report_error(const Error& error) {
  return {error.code(), error.origin().stage, error.origin().rank, error.what()};
}

std::string to_json(const Report& r) {
  Json json = {{"schema", "weightcast.report/1"},
               {"command", r.command},
               {"ok", r.exit_code == ExitCode::ok},
               {"exit_code", static_cast<int>(r.exit_code)},
               {"versions", to_value(r.versions)}};
  if (r.command == "bench") {
    json["rows"] = to_array(r.rows);
  } else {
    json["world"] = {{"trainer", r.trainers}, {"trainers", r.trainers}, {"tp", r.tp}, {"dp", r.dp}};
    json["source_layout"] = r.source_layout;
    json["device"] = r.device;
    json["transport"] = r.transport;
    json["method"] = r.method;
    json["granularity"] = r.granularity;
    json["commit"] = r.commit;
    json["model"] = {{"family", r.model.family}, {"parameters", r.model.parameters}, {"bytes", r.model.bytes}};
    json["group"] = {{"init_s", r.group.init_s}, {"warmup_s", r.group.warmup_s}, {"delta_bytes", r.group.delta_bytes}};
    json["phases"] = {{"load_s", r.phases.load_s},         {"group_s", r.phases.group_s},
                      {"updates_s", r.phases.updates_s},   {"check_s", r.phases.check_s},
                      {"snapshot_s", r.phases.snapshot_s}, {"total_s", r.phases.total_s}};
    json["notes"] = r.notes;
    json["updates"] = to_array(r.updates);
    json["summary"] = to_value(r.summary);
    if (r.scrubs) {
      json["summary"]["scrubs"] = r.scrubs->seconds.size();
      json["summary"]["scrub_s"] = median(r.scrubs->seconds);
    }
    json["verify"] = {{"mode", r.verify.mode},
                      {"parameters", r.verify.parameters},
                      {"mismatched", r.verify.mismatched},
                      {"digest", text_or_null(r.verify.digest)}};
    json["layers"] = to_array(r.path.layers);
    json["stages"] = to_array(r.path.stages);
    if (r.readers) json["readers"] = to_value(*r.readers);
  }
  json["ranks"] = to_array(r.ranks);
  json["error"] = r.error ? to_value(*r.error) : Json(nullptr);
  return fmt::format("{{\n  {}\n}}\n", joined(json, ",\n  ", 2));
}

void write_report(const OutputName& name, const Report& report, Deadline deadline) {
  write_text_file(name, to_json(report), deadline);
}

ReportCalls summarize_calls(const std::vector<double>& seconds, const std::vector<double>& below,
                            std::size_t calls_per_update) {
  WEIGHTCAST_EXPECTS(seconds.size() == below.size());
  std::vector<double> own, first, own_first;
  for (std::size_t i = 0; i < seconds.size(); ++i) {
    own.push_back(seconds[i] - below[i]);
    if (i % calls_per_update != 0) continue;
    first.push_back(seconds[i]);
    own_first.push_back(own[i]);
  }
  return {seconds.size(), median(first), median(seconds), p99(seconds), median(own_first), median(own), p99(own)};
}

ReportSummary summarize(const std::vector<ReportUpdate>& updates, std::uint64_t model_bytes) {
  std::vector<double> seconds;
  for (const auto& update : updates) {
    if (update.result == "committed") seconds.push_back(update.total_s);
  }
  ReportSummary summary;
  if (seconds.empty()) return summary;
  summary.cold_s = seconds.front();
  summary.median_s = median(seconds);
  summary.min_s = min(seconds);
  summary.max_s = max(seconds);
  summary.p99_s = p99(seconds);
  summary.model_GBps = static_cast<double>(model_bytes) / summary.median_s / 1e9;
  return summary;
}

}  // namespace weightcast
