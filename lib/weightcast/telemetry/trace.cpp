#include "weightcast/telemetry/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

namespace weightcast {
namespace {

std::string json_of(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// Each span in the first lane that is free when it begins.
std::vector<std::vector<const TraceSpan*>> lanes_of(std::vector<TraceSpan>& spans) {
  std::ranges::stable_sort(spans, {}, &TraceSpan::begin_ns);
  std::vector<std::vector<const TraceSpan*>> lanes;
  for (const auto& span : spans) {
    const auto free = std::ranges::find_if(
        lanes, [&](const auto& lane) { return lane.back()->begin_ns + lane.back()->duration_ns <= span.begin_ns; });
    (free == lanes.end() ? lanes.emplace_back() : *free).push_back(&span);
  }
  return lanes;
}

/// The events of a trace, as text.
class Events {
 public:
  explicit Events(int rank) : rank_(rank) {}

  void about_process(const char* key, const char* argument, const std::string& value) {
    add(R"({{"ph":"M","pid":{},"name":"{}","args":{{"{}":{}}}}})", rank_, key, argument, value);
  }
  void about_thread(std::size_t thread, const char* key, const char* argument, const std::string& value) {
    add(R"({{"ph":"M","pid":{},"tid":{},"name":"{}","args":{{"{}":{}}}}})", rank_, thread, key, argument, value);
  }
  void span(std::size_t thread, const TraceSpan& span, const std::string& counted) {
    add(R"({{"ph":"X","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"name":{},"args":{{"{}":{}{}}}}})", rank_, thread,
        1e-3 * static_cast<double>(span.begin_ns), 1e-3 * static_cast<double>(span.duration_ns),
        json_of(span.failed ? span.name + " (failed)" : span.name), counted, span.number,
        span.failed ? R"(,"failed":true)" : "");
  }
  const std::string& text() const noexcept { return text_; }

 private:
  template <typename... Arguments>
  void add(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    text_ += ",\n";
    fmt::format_to(std::back_inserter(text_), format, std::forward<Arguments>(arguments)...);
  }

  int rank_;
  std::string text_;
};

std::string events_of(TraceRank& rank) {
  Events events(rank.rank);
  events.about_process("process_name", "name", json_of(rank.name));
  events.about_process("process_sort_index", "sort_index", std::to_string(rank.rank));
  if (rank.clock_error_ns > 0) {
    events.about_process(
        "process_labels", "labels",
        json_of(fmt::format("clock within {:.3f} us", 1e-3 * static_cast<double>(rank.clock_error_ns))));
  }
  std::size_t thread = 0;
  for (auto& track : rank.tracks) {
    const auto lanes = lanes_of(track.spans);
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      const auto name = fmt::format("{}{}{}", track.name, lane == 0 ? "" : fmt::format(", lane {}", lane + 1),
                                    track.dropped > 0 ? fmt::format(" (without the first {})", track.dropped) : "");
      ++thread;
      events.about_thread(thread, "thread_name", "name", json_of(name));
      events.about_thread(thread, "thread_sort_index", "sort_index", std::to_string(thread));
      for (const auto* span : lanes[lane]) events.span(thread, *span, track.counted);
    }
  }
  return events.text();
}

}  // namespace

std::string to_trace_json(std::vector<TraceRank> ranks) {
  std::int64_t error_ns = 0;
  std::uint64_t dropped = 0;
  std::string events;
  for (auto& rank : ranks) {
    error_ns = std::max(error_ns, rank.clock_error_ns);
    for (const auto& track : rank.tracks) dropped += track.dropped;
    events += events_of(rank);
  }
  return fmt::format(
      "{{\"displayTimeUnit\":\"ms\",\n\"otherData\":{{\"times\":\"from the beginning of the job, on the clock of the "
      "rank that wrote this\",\"clock_error_us\":{:.3f},\"calls_dropped\":{}}},\n\"traceEvents\":[{}]}}\n",
      1e-3 * static_cast<double>(error_ns), dropped, events.empty() ? events : events.substr(1));
}

}  // namespace weightcast
