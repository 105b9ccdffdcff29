#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <span>
#include <sstream>
#include <tuple>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/text_width.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

using Row = std::vector<std::string>;

/// Columns as wide as their widest cell, two spaces apart; those in `right` are aligned to the right.
std::string table(const std::vector<Row>& rows, const std::vector<bool>& right) {
  std::vector<std::size_t> widths(right.size(), 0);
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += right[i] ? fmt::format("{:>{}}  ", row[i], widths[i]) : fmt::format("{:<{}}  ", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

std::string size(std::uint64_t bytes) {
  return fmt::format("{} bytes ({})", bytes, format_size(bytes));
}

/// "q_proj" of "model.layers.0.self_attn.q_proj.weight", "sinks" of "model.layers.0.self_attn.sinks".
std::string module_of(std::string_view parameter) {
  for (const std::string_view suffix : {".weight", ".bias"}) {
    if (parameter.ends_with(suffix)) parameter.remove_suffix(suffix.size());
  }
  return std::string(parameter.substr(parameter.rfind('.') + 1));
}

/// A name in a layer, "model.layers.7.mlp.down_proj.weight": 7, ".mlp.down_proj.weight".
struct LayerName {
  std::uint64_t layer;
  std::string rest;
};
constexpr std::string_view layers_prefix = "model.layers.";

std::optional<LayerName> in_layer(std::string_view name) {
  if (!name.starts_with(layers_prefix)) return std::nullopt;
  name.remove_prefix(layers_prefix.size());
  LayerName result{};
  const auto [end, status] = std::from_chars(name.data(), name.data() + name.size(), result.layer);
  if (status != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  result.rest = name.substr(static_cast<std::size_t>(end - name.data()));
  return result;
}

/// As a shell expands it: "{0..31}", "{0,3..60}", "{1..47..2}"; one number as it is.
std::string list_numbers(const std::vector<std::uint64_t>& numbers) {
  if (numbers.size() == 1) return fmt::to_string(numbers[0]);
  std::vector<std::string> items;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i + 1;
    const auto step = last < numbers.size() ? numbers[last] - numbers[i] : 0;
    while (last + 1 < numbers.size() && numbers[last + 1] - numbers[last] == step) ++last;
    const bool run = last >= i + 2 && last < numbers.size();
    items.push_back(fmt::to_string(numbers[i]));
    if (run) items.back() += fmt::format("..{}{}", numbers[last], step > 1 ? fmt::format("..{}", step) : "");
    i = run ? last + 1 : i + 1;
  }
  return fmt::format("{{{}}}", fmt::join(items, ","));
}

/// An engine tensor, or those of several layers that differ in the number of the layer only.
struct TensorRow {
  std::string name;                   ///< in a layer: what follows its number
  std::vector<std::uint64_t> layers;  ///< of a tensor that is in none: none
  std::string dtype, shape, bytes, from, cut;

  std::string full_name() const {
    return layers.empty() ? name : fmt::format("{}{}{}", layers_prefix, list_numbers(layers), name);
  }
  auto all_but_layers() const { return std::tie(name, dtype, shape, bytes, from, cut); }
};

TensorRow row_of(const TransferPlan& plan, const EngineTensor& tensor) {
  std::vector<std::string> from, rules;
  for (const auto i : tensor.parameters) {
    const ParameterRule& rule = plan.model.parameters[i];
    auto module = module_of(rule.info.name);
    if (std::ranges::find(from, module) == from.end()) from.push_back(std::move(module));
    std::string cut(name(rule.kind));
    if (rule.kind == ShardKind::kv_heads && plan.tp > rule.units)
      cut += fmt::format(" (each on {} ranks)", plan.tp / rule.units);
    if (rules.empty() || rules.back() != cut) rules.push_back(cut);
  }
  const auto& first = plan.model.parameters[tensor.parameters.front()];
  if (first.ep > 1) rules.push_back(fmt::format("experts over {} groups", first.ep));
  TensorRow row{.name = tensor.name,
                .layers = {},
                .dtype = std::string(name(tensor.dtype)),
                .shape = fmt::format("[{}]", fmt::join(shape_of(plan, tensor), ", ")),
                .bytes = fmt::to_string(tensor.size_bytes),
                .from = fmt::format("{}{}", fmt::join(from, " + "),
                                    first.experts > 0 ? fmt::format(" of {} experts", first.experts) : ""),
                .cut = fmt::format("{}", fmt::join(rules, ", "))};
  if (const auto place = in_layer(tensor.name)) {
    row.name = place->rest;
    row.layers = {place->layer};
  }
  return row;
}

std::vector<TensorRow> tensor_rows(const TransferPlan& plan, bool all) {
  std::vector<TensorRow> rows;
  for (const auto& tensor : plan.engine_tensors) {
    auto row = row_of(plan, tensor);
    const auto same = all || row.layers.empty() ? rows.end() : std::ranges::find_if(rows, [&](const TensorRow& other) {
      return !other.layers.empty() && other.all_but_layers() == row.all_but_layers();
    });
    if (same == rows.end()) {
      rows.push_back(std::move(row));
    } else {
      same->layers.push_back(row.layers.front());
    }
  }
  return rows;
}

std::string engine_tensor_table(const TransferPlan& plan, PlanView view) {
  const auto tensors = tensor_rows(plan, view.all);
  std::vector<Row> rows{{"engine tensor", "dtype", "shape per rank", "bytes per rank", "from", "cut by"}};
  if (view.wide) {
    for (const auto& t : tensors) rows.push_back({t.full_name(), t.dtype, t.shape, t.bytes, t.from, t.cut});
    return table(rows, {false, false, false, true, false, false});
  }
  rows.front() = {"engine tensor", "shape", "bytes"};
  for (const auto& t : tensors) rows.push_back({t.full_name(), t.shape, t.bytes});
  const auto widest = [&](std::size_t column) {
    return std::ranges::max(rows, {}, [&](const Row& row) { return row[column].size(); })[column].size();
  };
  constexpr std::size_t least_name = 20, gaps = 4;
  const auto others = std::min(usual_columns - least_name, widest(1) + widest(2) + gaps);
  for (auto& row : rows) row[0] = shorten(row[0], usual_columns - others);
  std::istringstream lines(table(rows, {false, true, true}));
  std::string text = "what each engine rank holds", line;
  std::getline(lines, line);
  text += ":\n" + line + '\n';
  for (const auto& t : tensors) {
    std::getline(lines, line);
    const auto cut = t.cut == name(ShardKind::replicated) ? t.cut : "cut by " + t.cut;
    text += line + '\n' + fold(fmt::format("    {} from {}, {}", t.dtype, t.from, cut), "      ") + '\n';
  }
  return text;
}

/// Rows whose first cell is the number of a rank: runs of such that differ in nothing else are one, "0..15".
std::vector<Row> fold_ranks(const std::vector<Row>& rows) {
  std::vector<Row> result{rows.front()};
  std::size_t first = 1;
  for (std::size_t i = 1; i < rows.size(); ++i) {
    if (i > first && std::equal(rows[i].begin() + 1, rows[i].end(), rows[first].begin() + 1)) {
      result.back()[0] = fmt::format("{}..{}", rows[first][0], rows[i][0]);
    } else {
      result.push_back(rows[i]);
      first = i;
    }
  }
  return result;
}

std::string rank_table(const TransferPlan& plan, bool all) {
  std::vector<Row> received{{"tp rank", "received bytes", "padding bytes", "shards", "moves"}};
  std::vector<Row> schedules{{"tp rank", "parts", "copies", "strided tasks"}};
  for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
    const RankPlan& rank = plan.ranks[t];
    const auto rank_index = fmt::to_string(t);
    std::uint64_t padding = 0;
    for (const auto& range : rank.padding) padding += range.size_bytes;
    std::size_t copies = 0, strided = 0, tasks = 0;
    for (const auto& part : rank.schedule.whole) copies += part.copies.count;
    for (const auto& segment : rank.schedule.segments) {
      if (segment.contiguous()) continue;
      ++strided;
      for_each_task(segment, copy_block_bytes, [&](const Segment&) { ++tasks; });
    }
    const auto shards = std::count_if(rank.shards.begin(), rank.shards.end(), [](const auto& s) { return s.rows > 0; });
    received.push_back({rank_index, fmt::to_string(rank.received_bytes), fmt::to_string(padding),
                        fmt::to_string(shards), fmt::to_string(copies + strided)});
    schedules.push_back(
        {rank_index, fmt::to_string(rank.schedule.whole.size()), fmt::to_string(copies), fmt::to_string(tasks)});
  }
  if (!all) received = fold_ranks(received), schedules = fold_ranks(schedules);
  return table(received, {true, true, true, true, true}) + '\n' + table(schedules, {true, true, true, true});
}

/// What each trainer rank has and sends, and to which tp ranks, in its order.
std::string trainer_table(const TransferPlan& plan, bool all) {
  constexpr std::size_t most_shown = 8;
  std::vector<Row> rows{{"trainer rank", "held bytes", "sent bytes", "pieces", "to tp ranks, in this order"}};
  for (std::size_t from = 0; from < plan.sources.ranks.size(); ++from) {
    const auto sinks = plan.sinks(from);
    const auto shown = std::span(sinks).first(std::min(sinks.size(), most_shown));
    rows.push_back({fmt::to_string(from), fmt::to_string(plan.held_bytes(from)),
                    fmt::to_string(plan.egress_bytes_of(from)), fmt::to_string(plan.sources.ranks[from].pieces.size()),
                    fmt::format("{}{}", fmt::join(shown, " "), shown.size() < sinks.size() ? " ..." : "")});
  }
  return table(all ? rows : fold_ranks(rows), {true, true, true, true, false});
}

struct Addition {
  std::string kind;
  std::uint64_t parameters = 0, bytes = 0;
};

std::string replication_table(const TransferPlan& plan) {
  std::vector<Addition> additions;
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    std::uint64_t bytes = 0;
    for (std::size_t t = 0; t < plan.ranks.size(); ++t) {
      if (plan.copy(t, i)) bytes += plan.ranks[t].shards[i].size_bytes();
    }
    if (bytes == 0) continue;
    const auto& name = plan.model.parameters[i].info.name;
    const auto place = in_layer(name);
    const auto kind = place ? place->rest.substr(1) : name;  // what all layers have in common
    auto found = std::find_if(additions.begin(), additions.end(), [&](const Addition& a) { return a.kind == kind; });
    if (found == additions.end()) found = additions.insert(additions.end(), {kind});
    ++found->parameters;
    found->bytes += bytes;
  }
  std::vector<Row> rows;
  for (const auto& a : additions) {
    rows.push_back({"", a.kind, fmt::format("x {}", a.parameters), fmt::to_string(a.bytes), "bytes"});
  }
  return table(rows, {false, false, true, true, false});
}

/// What is received by the engine ranks: as a rule the same by all.
std::string received(const TransferPlan& plan) {
  const auto [least, most] = std::ranges::minmax_element(plan.ranks, {}, &RankPlan::received_bytes);
  if (least->received_bytes == most->received_bytes) return size(most->received_bytes);
  return fmt::format("{} to {}", size(least->received_bytes), size(most->received_bytes));
}

}  // namespace

std::string describe(const TransferPlan& plan, PlanView view) {
  return describe(plan, prove_coverage(plan), view);
}

std::string describe(const TransferPlan& plan, const std::string& violation, PlanView view) {
  const std::uint64_t model_bytes = plan.model.size_bytes(), egress = plan.egress_bytes();
  const double ratio = static_cast<double>(egress) / static_cast<double>(model_bytes);
  const auto trainers = plan.roster().trainers;
  std::string text;
  const auto say = [&](std::string_view what, const std::string& value) {
    text += fold(fmt::format("{:<24}{}", what, value), std::string(24, ' ')) + '\n';
  };
  say("model", fmt::format("{}, {} parameters, {}", name(plan.model.config.family), plan.model.tensor_count(),
                           size(model_bytes)));
  say("group", fmt::format("tp {}, dp {}: {} ranks with {}", plan.tp, plan.dp, plan.roster().rank_count(),
                           trainers == 1 ? "the trainer" : fmt::format("{} trainer ranks", trainers)));
  say("each engine rank gets", received(plan));
  say("slot of an engine rank", size(plan.slot_bytes));
  say("trainer egress", fmt::format("{}, {:.4f} x the model", size(egress), ratio));
  say("replication adds", plan.tp == 1 ? "nothing" : size(plan.replication_bytes()));
  text += replication_table(plan);
  say("plan digest", plan.digest);
  say("coverage", violation.empty() ? "proven: every byte of a slot is written once or is padding, every byte of the "
                                      "model is read"
                                    : "VIOLATED: " + violation);
  text += '\n' + engine_tensor_table(plan, view) + '\n' + rank_table(plan, view.all);
  if (trainers > 1) text += '\n' + trainer_table(plan, view.all);
  return text;
}

}  // namespace weightcast
