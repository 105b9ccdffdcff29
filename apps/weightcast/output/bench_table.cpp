#include "output/bench_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>

#include "output/update_table.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/job/layer_study.hpp"
#include "weightcast/job/readers.hpp"

namespace weightcast {
namespace {

void print_line(const std::string& text) {
  fmt::print("{}", header_line(text));
}

template <typename Choice>
std::string words_of(const std::vector<Choice>& choices) {
  std::vector<std::string_view> words;
  for (const auto choice : choices) words.push_back(name_of(choice));
  return fmt::format("{}", fmt::join(words, ", "));
}

bool any_delta(const BenchOptions& options) {
  return std::ranges::any_of(options.deltas, [](BenchDelta delta) { return delta != BenchDelta::off; });
}

/// What a table of all combinations has. What all of them have in common is left out first: the header says it.
Table table_of(const BenchOptions& options) {
  constexpr std::size_t least_name = 8, most_name = 20;
  std::size_t name = least_name;
  for (const auto& model : options.models) name = std::max(name, model.size());
  const auto varies = [](const auto& choices) { return choices.size() > 1 ? 0 : 1; };
  std::vector<Column> columns = {{"model", std::min(name, most_name), 0, true},
                                 {"size", 7, 5},
                                 {"transport", 9, 0, true},
                                 {"method", 9, varies(options.methods), true},
                                 {"unit", 9, varies(options.granularities), true},
                                 {"verify", 6, varies(options.verifies), true},
                                 {"cold", 8, 9},
                                 {"median", 8},
                                 {"min", 8, 4},
                                 {"max", 8, 3},
                                 {"p99", 8, 8},
                                 {"GB/s", 7},
                                 {"egress", 6, 7},
                                 {"staging", 7, 2},
                                 {"#wrong", 6, 12},
                                 {"ceiling", 7, options.ceiling ? 6 : 1},
                                 {"ratio", 5, options.ceiling ? 11 : 1}};
  if (any_delta(options)) {
    columns.push_back({"delta", 8, varies(options.deltas), true});
    for (auto& column : payload_columns()) columns.push_back(std::move(column));
    columns.push_back({"ship", 8, 10});
  }
  return {std::move(columns), options.wide};
}

}  // namespace

void print_bench_header(const BenchOptions& options, const Roster& roster, MemoryKind memory) {
  print_line(fmt::format("weightcast bench: {}, memory {}", describe(roster), name(memory)));
  print_line(fmt::format("{} updates after {} to warm up; method {}, unit {}, verify {}", options.repeat,
                         options.warmup, words_of(options.methods), words_of(options.granularities),
                         words_of(options.verifies)));
  if (roster.trainers > 1) print_line(fmt::format("source layout {}", name_of(options.source_layout)));
  if (options.commit == CommitMode::in_place) print_line("commit in place: engines have one slot");
  if (!options.group_warmup) print_line("no warm-up when a group is formed: the cold update pays for it");
  if (options.ceiling)
    print_line(
        "ceiling: GB/s when a replica takes its shares of the trainer's memory in plain copies, from both ends of a "
        "link");
  if (options.changed) print_line(fmt::format("versions differ in {:g} % of their elements", 100 * *options.changed));
  if (any_delta(options)) {
    print_line(fmt::format("deltas of up to {:g} % of the bytes; the cold update is dense", 100 * options.delta_limit));
    print_line(
        "delta auto: what changed is found while a source is filled, before each update; versions: between two "
        "sources");
    print_line("diff: making the delta, of versions also finding it, is no part of the times; apply is");
  }
  const auto table = table_of(options);
  print_line("GB/s: bytes of the model / median");
  print_line("times in ms, from before PREPARE to after COMMIT, as rank 0 sees them" + table.note());
  fmt::print("{}", table.head());
  std::fflush(stdout);
}

void print_bench_row(const ReportRow& row, const BenchOptions& options) {
  std::vector<std::string> cells = {
      printable(row.model), format_size(row.model_bytes), row.transport, row.method, row.granularity, row.verify};
  for (const double seconds : {row.cold_s, row.median_s, row.min_s, row.max_s, row.p99_s})
    cells.push_back(milliseconds(seconds));
  const auto bytes = static_cast<double>(row.model_bytes);
  cells.insert(cells.end(),
               {fmt::format("{:.2f}", row.model_GBps),
                fmt::format("{:.4f}", static_cast<double>(row.egress_bytes) / bytes), format_size(row.staging_bytes),
                fmt::to_string(row.wrong), row.ceiling_GBps > 0 ? fmt::format("{:.2f}", row.ceiling_GBps) : "-",
                row.ratio_to_ceiling > 0 ? fmt::format("{:.3f}", row.ratio_to_ceiling) : "-"});
  if (any_delta(options)) {
    cells.push_back(row.delta);
    for (auto& cell : payload_cells(row.sent, row.egress_bytes, row.model_bytes)) cells.push_back(std::move(cell));
    cells.push_back(milliseconds(row.ship_s));
  }
  fmt::print("{}", table_of(options).row(cells));
  std::fflush(stdout);
  print_trainer_egress(row.trainer_egress_bytes, row.model_bytes);
  print_path(row.path);
  if (row.readers) fmt::print("{}", describe(*row.readers));
}

}  // namespace weightcast
