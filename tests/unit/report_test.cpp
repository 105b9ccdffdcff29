#include "weightcast/telemetry/report.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Statistics, SmallSets) {
  EXPECT_TRUE(std::isnan(median({})));
  EXPECT_TRUE(std::isnan(p99({})));
  EXPECT_TRUE(std::isnan(min({})));
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(min({3, 1, 2}), 1);
  EXPECT_EQ(max({1, 3, 2}), 3);
}

TEST(Statistics, NearestRank) {
  std::vector<double> values;
  for (int i = 200; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(p99(values), 198);
  EXPECT_EQ(percentile(values, 50), 100);
  EXPECT_EQ(percentile(values, 100), 200);
  EXPECT_EQ(p99({7}), 7);
  EXPECT_EQ(p99({1, 2, 3}), 3);
}

Report sample(const std::string& command) {
  Report report;
  report.command = command;
  report.versions = {"0.1.0", "Open MPI v4.1.4", "not built in", "not built in", "1.10.8"};
  report.ranks = {{0, "trainer", "node1", ""}, {1, "engine", "node1", "0000:0f:00.0"}};
  report.device = "host";
  report.transport = "mpi";
  report.method = "sharded";
  report.granularity = "model";
  report.commit = "swap";
  report.verify.mode = "all";
  report.model.family = "llama";
  return report;
}

/// Runs the schema check that scripts use on a report.
int check(const std::string& name, const Report& report) {
  const std::string path = ::testing::TempDir() + name;
  write_report(path, report);
  return std::system(("python3 " WEIGHTCAST_SOURCE_DIR "/tests/interop/check_report.py " + path).c_str());
}

TEST(Report, UpdateFollowsTheSchema) {
  Report report = sample("update");
  ReportUpdate update;
  update.id = 1, update.version = 2, update.result = "committed", update.total_s = 0.25;
  report.updates.push_back(update);
  report.path.layers.push_back({"engine", summarize_calls({0.5, 0.25}, {0.125, 0.125}, 2), {}});
  report.path.stages.push_back({"vote", {}, {}});
  report.readers.emplace();
  report.readers->count = 2, report.readers->reads = 10;
  report.readers->layers.push_back({"engine", 10, 0.5, 0.75});
  report.verify.digest = std::string(32, 'a');
  EXPECT_THAT(to_json(report), Not(HasSubstr("scrub")));
  report.scrubs.emplace();
  EXPECT_THAT(to_json(report), AllOf(HasSubstr("\"scrubs\": 0"), HasSubstr("\"scrub_s\": null")));
  report.scrubs->seconds = {0.5, 0.125, 4};
  EXPECT_THAT(to_json(report), AllOf(HasSubstr("\"scrubs\": 3"), HasSubstr("\"scrub_s\": 0.5")));
  EXPECT_EQ(check("weightcast_report_update.json", report), 0);
  EXPECT_THAT(to_json(report),
              AllOf(HasSubstr("\"schema\": \"weightcast.report/1\""), HasSubstr("\"total_s\": 0.25"),
                    HasSubstr("\"pause_s\": null"), HasSubstr("\"error\": null"), HasSubstr("\"ok\": true")));
}

TEST(Report, SaysWhatWasSent) {
  Report report = sample("update");
  ReportUpdate update;
  update.result = "committed";
  update.sent = {"delta", 3000, 700, 0.125, 0.0625};
  report.updates = {update, ReportUpdate()};
  report.updates[1].result = "aborted";
  EXPECT_EQ(check("weightcast_report_delta.json", report), 0);
  EXPECT_THAT(to_json(report), AllOf(HasSubstr("\"payload\": \"delta\""), HasSubstr("\"shipped_bytes\": 3000"),
                                     HasSubstr("\"changed_elements\": 700"), HasSubstr("\"diff_s\": 0.125"),
                                     HasSubstr("\"apply_s\": 0.0625"), HasSubstr("\"payload\": null")));
  report.updates[0].sent.payload = "dense";  // which ships no delta
  EXPECT_NE(check("weightcast_report_delta.json", report), 0);
  report = sample("bench");
  ReportRow row;
  row.model = "tiny", row.device = "host", row.transport = "mpi", row.method = "sharded", row.granularity = "model";
  row.verify = "all", row.delta = "versions", row.changed = 0.02, row.ship_s = 0.25;
  row.sent = {"delta", 3000, 700, 0.125, 0.0625};
  report.rows.push_back(row);
  EXPECT_EQ(check("weightcast_report_delta.json", report), 0);
  EXPECT_THAT(to_json(report), AllOf(HasSubstr("\"delta\": \"versions\""), HasSubstr("\"changed\": 0.02"),
                                     HasSubstr("\"ship_s\": 0.25"), HasSubstr("\"shipped_bytes\": 3000")));
}

TEST(Report, AnErrorIsPartOfIt) {
  Report report = sample("update");
  Error error(ExitCode::deadline, "rank 2 did not answer");
  error.origin() = {.stage = "stage", .rank = 2, .host = "node1", .role = "engine"};
  report.exit_code = error.code();
  report.error = report_error(error);
  EXPECT_EQ(check("weightcast_report_error.json", report), 0);
  EXPECT_THAT(to_json(report), HasSubstr("\"ok\": false"));
  EXPECT_THAT(to_json(report), HasSubstr("\"exit_code\": 124"));
  EXPECT_THAT(to_json(report), HasSubstr("\"stage\": \"stage\""));
}

TEST(Report, BenchHasRowsAndNoUpdates) {
  Report report = sample("bench");
  ReportRow row;
  row.model = "tiny", row.model_bytes = 1000, row.device = "host", row.transport = "mpi", row.method = "sharded";
  row.granularity = "model", row.verify = "none", row.median_s = 0.5;
  report.rows.push_back(row);
  row.path = {{{"engine", {}, {}}}, {{"stage", {}, {}}}};
  report.rows.push_back(row);
  EXPECT_EQ(check("weightcast_report_bench.json", report), 0);
  EXPECT_THAT(to_json(report), Not(HasSubstr("\"updates\"")));
}

TEST(Report, CallsAreSummarizedWithAndWithoutTheLayersBelow) {
  const auto calls = summarize_calls({9, 2, 4}, {1, 1, 2}, 3);
  EXPECT_EQ(calls.calls, 3u);
  EXPECT_EQ(calls.first_s, 9);
  EXPECT_EQ(calls.median_s, 4);
  EXPECT_EQ(calls.p99_s, 9);
  EXPECT_EQ(calls.own_first_s, 8);
  EXPECT_EQ(calls.own_median_s, 2);
  EXPECT_EQ(calls.own_p99_s, 8);
  EXPECT_EQ(summarize_calls({9, 2, 4, 1, 5, 1}, {1, 1, 1, 1, 2, 1}, 2).first_s, 5);
  EXPECT_EQ(summarize_calls({9, 2, 4, 1, 5, 1}, {1, 1, 1, 1, 2, 1}, 2).own_first_s, 3);
  const ReportLayer only_cold{"engine", calls, summarize_calls({}, {}, 3)};
  EXPECT_EQ(only_cold.calls(), 3u);
  EXPECT_EQ(only_cold.median_s(), 4);
  EXPECT_EQ((ReportLayer{"engine", calls, summarize_calls({1}, {0}, 1)}).median_s(), 1);
}

TEST(Report, NumbersAreAsExactAsTheyWereMeasured) {
  Report report = sample("update");
  ReportUpdate update;
  update.result = "committed", update.total_s = 0.1 + 0.2, update.prepare_s = 1234.00000000049, update.vote_s = 4e-9;
  update.stage_s = 1.9999999996, update.verify_s = 1.0 / 3, update.commit_s = 0;
  report.updates.push_back(update);
  report.summary.model_GBps = 398.123456, report.summary.ratio_to_ceiling = 0.98765432;
  report.model.bytes = 16'060'522'496;
  report.readers.emplace();
  report.readers->reads_per_s = 21'922.987654;
  const auto text = to_json(report);
  for (const auto* part :
       {"\"total_s\": 0.3,", "\"prepare_s\": 1234.0,", "\"stage_s\": 2.0,", "\"verify_s\": 0.333333333,",
        "\"vote_s\": 4e-09,", "\"commit_s\": 0.0,", "\"model_GBps\": 398.12,", "\"ratio_to_ceiling\": 0.9877}",
        "\"bytes\": 16060522496}", "\"reads_per_s\": 21923.0,", "\"idle_p50_s\": null,"})
    EXPECT_THAT(text, HasSubstr(part));
  report = sample("bench");
  report.rows.push_back({});
  report.rows.back().changed = 0.0123456789;  // asked for, not measured
  EXPECT_THAT(to_json(report), HasSubstr("\"changed\": 0.0123456789,"));
}

TEST(Report, EachObjectOfAListHasALine) {
  Report report = sample("bench");
  report.rows.resize(2);
  report.rows[0].trainer_egress_bytes = {1, 2};
  report.rows[1].path = {{{"engine", {}, {}}, {"scheduler", {}, {}}}, {}};
  const auto text = to_json(report);
  EXPECT_THAT(
      text, AllOf(HasSubstr("{\n  \"schema\": \"weightcast.report/1\",\n  \"command\": \"bench\",\n"),
                  HasSubstr("\n  \"rows\": [\n    {\"model\": "), HasSubstr("\"trainer_egress_bytes\": [1, 2], "),
                  HasSubstr("},\n    {\"model\": "), HasSubstr("\"layers\": [\n      {\"layer\": \"engine\", "),
                  HasSubstr("}},\n      {\"layer\": \"scheduler\", "), HasSubstr("}}\n    ], \"stages\": []}\n  ],\n"),
                  HasSubstr("\n    {\"rank\": 1, "), HasSubstr("\n  \"error\": null\n}\n")));
  EXPECT_EQ(std::ranges::count(text, '\n'), 19);
}

TEST(Report, TheSchemaCheckCanFail) {
  Report report = sample("update");
  report.command = "neither";
  EXPECT_NE(check("weightcast_report_bad.json", report), 0);
  report = sample("update");
  report.exit_code = ExitCode::deadline;  // but no error
  EXPECT_NE(check("weightcast_report_bad.json", report), 0);
}

TEST(Report, TextThatIsNotUtf8IsReplaced) {
  Report report = sample("bench");
  report.error = ReportError{ExitCode::no_input, "load", 0, "cannot open \xff\n"};
  EXPECT_THAT(to_json(report), HasSubstr("cannot open \xef\xbf\xbd\\n"));
}

}  // namespace
}  // namespace weightcast
