// What a trace says of spans, and what barriers say of clocks.
#include "weightcast/telemetry/trace.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <vector>

#include "weightcast/job/timeline.hpp"
#include "weightcast/telemetry/layer_times.hpp"

namespace weightcast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

void expect_all(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_THAT(text, HasSubstr(part));
}

TEST(Trace, SpansOfOneThread) {
  const TraceTrack track{"stages", "update", 0, {{"prepare", 1'234'567, 1'000, 7}, {"stage", 1'235'567, 5, 7, true}}};
  const auto text = to_trace_json({{3, "rank 3: \"x\"", 0, {track}}});
  expect_all(text, {R"j({"ph":"M","pid":3,"name":"process_name","args":{"name":"rank 3: \"x\""}})j",
                    R"j({"ph":"M","pid":3,"name":"process_sort_index","args":{"sort_index":3}})j",
                    R"j({"ph":"M","pid":3,"tid":1,"name":"thread_name","args":{"name":"stages"}})j",
                    R"j("tid":1,"ts":1234.567,"dur":1.000,"name":"prepare","args":{"update":7}})j",
                    R"j("ts":1235.567,"dur":0.005,"name":"stage (failed)","args":{"update":7,"failed":true}})j",
                    R"j("clock_error_us":0.000,"calls_dropped":0)j"});
  EXPECT_THAT(text, AllOf(Not(HasSubstr("lane")), Not(HasSubstr("without")), Not(HasSubstr("labels"))));
}

TEST(Trace, WhatOverlapsTakesLanes) {
  const TraceTrack track{"reads", "read", 5, {{"c", 9, 4, 3}, {"a", 0, 10, 1}, {"b", 5, 3, 2}, {"d", 10, 1, 4}}};
  const auto text = to_trace_json({{0, "rank", 12'345, {track}}});
  expect_all(text, {R"j("reads (without the first 5)")j", R"j("reads, lane 2 (without the first 5)")j",
                    R"j("tid":1,"ts":0.000,"dur":0.010,"name":"a")j", R"j("tid":2,"ts":0.005,"dur":0.003,"name":"b")j",
                    R"j("tid":2,"ts":0.009,"dur":0.004,"name":"c")j", R"j("tid":1,"ts":0.010,"dur":0.001,"name":"d")j",
                    R"j("process_labels","args":{"labels":"clock within 12.345 us"})j",
                    R"j("clock_error_us":12.345,"calls_dropped":5)j"});
  EXPECT_THAT(text, Not(HasSubstr("lane 3")));
}

TEST(Trace, OfNothing) {
  EXPECT_THAT(to_trace_json({}), HasSubstr("\"traceEvents\":[]}"));
}

TEST(LayerTimes, KeepsTheLastCalls) {
  LayerTimes times("layer");
  for (std::uint64_t i = 0; i < LayerTimes::kept + 3; ++i)
    times.note({static_cast<std::int64_t>(i), static_cast<std::int64_t>(2 * i)});
  const auto last = times.last_calls(5);
  EXPECT_EQ(last.calls, LayerTimes::kept + 3);
  ASSERT_EQ(last.kept.size(), 5u);
  EXPECT_EQ(last.kept.front().begin_ns, static_cast<std::int64_t>(LayerTimes::kept) - 2);
  EXPECT_EQ(last.kept.back().duration_ns, 2 * static_cast<std::int64_t>(LayerTimes::kept) + 4);
  EXPECT_EQ(times.last_calls(2 * LayerTimes::kept).kept.size(), LayerTimes::kept);
  EXPECT_DOUBLE_EQ(times.last(1).at(0), 2e-9 * (LayerTimes::kept + 2));
}

// Two ranks come to barriers at any times, and leave them at any time after both have come.
RC_GTEST_PROP(Clocks, TheOffsetIsWithinWhatBarriersSay, ()) {
  using Number = std::int64_t;
  const auto offset = *rc::gen::inRange<Number>(-1'000'000'000'000, 1'000'000'000'000);
  const auto later = [] { return *rc::gen::inRange<Number>(0, 100'000); };
  std::vector<Number> first, other;
  Number now = 0, tightest = std::numeric_limits<Number>::max();
  const auto barriers = *rc::gen::inRange(1, 10);
  for (int i = 0; i < barriers; ++i) {
    const Number first_came = now + later(), other_came = now + later();
    now = std::max(first_came, other_came);
    const Number first_left = now + later(), other_left = now + later();
    first.insert(first.end(), {first_came, first_left});
    other.insert(other.end(), {other_came + offset, other_left + offset});
    tightest = std::min(tightest, (first_left - first_came + other_left - other_came + 1) / 2);
    now = std::max(first_left, other_left);
  }
  const auto found = offset_between(first, other);
  RC_ASSERT(found.low_ns <= offset && offset <= found.high_ns);
  RC_ASSERT(std::abs(found.estimate_ns() - offset) <= found.error_ns());
  RC_ASSERT(found.error_ns() <= tightest);  // all barriers together say no less than the best of them
  const auto same = offset_between(first, first);
  RC_ASSERT(same.low_ns <= 0 && 0 <= same.high_ns);
}

}  // namespace
}  // namespace weightcast
