#include "weightcast/job/layer_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "weightcast/core/text_width.hpp"

namespace weightcast {
namespace {

void print_row(std::string_view layer, const char* when, const ReportCalls& calls, bool has_own) {
  fmt::print("# {:<12} {:<4}", layer, when);
  for (const double seconds : {calls.first_s, calls.median_s, calls.p99_s}) fmt::print(" {:>9.1f}", seconds * 1e6);
  if (has_own)
    for (const double seconds : {calls.own_first_s, calls.own_median_s, calls.own_p99_s})
      fmt::print(" {:>9.1f}", seconds * 1e6);
  fmt::print("\n");
}

}  // namespace

std::vector<ReportCalls> LayerStudy::summarize(const Engine& engine, std::uint64_t updates) const {
  const auto calls = std::min(updates, LayerTimes::kept / calls_per_update_) * calls_per_update_;
  std::vector<std::vector<double>> seconds;
  for (const auto* layer : engine.layers()) seconds.push_back(layer->last(calls));
  std::vector<double> all_stages(seconds.back().size());
  std::vector<ReportCalls> stages;
  for (const auto& stage : engine.stages().times()) {
    const auto times = stage.last(calls);
    for (std::size_t i = 0; i < all_stages.size(); ++i) all_stages[i] += times.at(i);
    stages.push_back(summarize_calls(times, std::vector<double>(times.size()), calls_per_update_));
  }
  seconds.push_back(all_stages);
  std::vector<ReportCalls> result;
  for (std::size_t i = 0; i + 1 < seconds.size(); ++i)
    result.push_back(summarize_calls(seconds[i], seconds[i + 1], calls_per_update_));
  result.insert(result.end(), stages.begin(), stages.end());
  return result;
}

ReportPath LayerStudy::gather(const Communicator& world, const Roster& roster, Deadline deadline) const {
  constexpr auto size = request_layers.size() + StageTimes::names.size();
  std::vector<ReportCalls> mine(2 * size);
  std::copy(cold_.begin(), cold_.end(), mine.begin());
  std::copy(warm_.begin(), warm_.end(), mine.begin() + size);
  const auto first_engine = static_cast<std::size_t>(roster.engine_rank(0, 0));
  const auto theirs = world.all_gather_values(std::span<const ReportCalls>(mine), deadline).at(first_engine);
  ReportPath path;
  std::size_t i = 0;
  for (const auto* name : request_layers) path.layers.push_back({name, theirs[i], theirs[size + i]}), ++i;
  for (const auto* name : StageTimes::names) path.stages.push_back({name, theirs[i], theirs[size + i]}), ++i;
  return path;
}

void print_path(const ReportPath& path) {
  if (path.layers.empty()) return;
  fmt::print("{}\n",
             fold("# us of one call on the first engine rank, with the layers below, then its own part alone; cold is "
                  "the first update, warm all later ones; first is an update's first call (the largest parameter, as a "
                  "rule). The seed's parts of model_runner: create is prepare (all agree on the claim; the memory "
                  "exists), move and load are stage (bytes land where they are served from); verify, vote, commit it "
                  "has not.",
                  "#   "));
  fmt::print("# {:<12} {:<4} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "layer", "", "first", "median", "p99", "own first",
             "median", "p99");
  const auto print_rows = [](const auto& layers, std::string_view indent, bool has_own) {
    for (const auto& layer : layers) {
      const auto name = fmt::format("{}{}", indent, layer.layer);
      print_row(name, "cold", layer.cold, has_own);
      print_row(name, "warm", layer.warm, has_own);
    }
  };
  print_rows(path.layers, "", true);
  print_rows(path.stages, "  ", false);
  std::fflush(stdout);
}

}  // namespace weightcast
