#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "weightcast/core/bytes.hpp"
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

/// "self_attn.q_proj.weight" of "model.layers.0.self_attn.q_proj.weight": what all layers have in common.
std::string kind_of(std::string_view parameter) {
  constexpr std::string_view layers = "model.layers.";
  if (parameter.starts_with(layers)) parameter = parameter.substr(parameter.find('.', layers.size()) + 1);
  return std::string(parameter);
}

std::string engine_tensor_table(const TransferPlan& plan) {
  std::vector<Row> rows{{"engine tensor", "dtype", "shape per rank", "bytes per rank", "from", "cut by"}};
  for (const auto& tensor : plan.engine_tensors) {
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
    rows.push_back({tensor.name, std::string(name(tensor.dtype)),
                    fmt::format("[{}]", fmt::join(shape_of(plan, tensor), ", ")), fmt::to_string(tensor.size_bytes),
                    fmt::format("{}{}", fmt::join(from, " + "),
                                first.experts > 0 ? fmt::format(" of {} experts", first.experts) : ""),
                    fmt::format("{}", fmt::join(rules, ", "))});
  }
  return table(rows, {false, false, false, true, false, false});
}

std::string rank_table(const TransferPlan& plan) {
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
  return table(received, {true, true, true, true, true}) + '\n' + table(schedules, {true, true, true, true});
}

/// What each trainer rank has and sends, and to which tp ranks, in its order.
std::string trainer_table(const TransferPlan& plan) {
  constexpr std::size_t most_shown = 8;
  std::vector<Row> rows{{"trainer rank", "held bytes", "sent bytes", "pieces", "to tp ranks, in this order"}};
  for (std::size_t from = 0; from < plan.sources.ranks.size(); ++from) {
    const auto sinks = plan.sinks(from);
    const auto shown = std::span(sinks).first(std::min(sinks.size(), most_shown));
    rows.push_back({fmt::to_string(from), fmt::to_string(plan.held_bytes(from)),
                    fmt::to_string(plan.egress_bytes_of(from)), fmt::to_string(plan.sources.ranks[from].pieces.size()),
                    fmt::format("{}{}", fmt::join(shown, " "), shown.size() < sinks.size() ? " ..." : "")});
  }
  return table(rows, {true, true, true, true, false});
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
    const std::string kind = kind_of(plan.model.parameters[i].info.name);
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

}  // namespace

std::string describe(const TransferPlan& plan) {
  return describe(plan, prove_coverage(plan));
}

std::string describe(const TransferPlan& plan, const std::string& violation) {
  const std::uint64_t model_bytes = plan.model.size_bytes(), egress = plan.egress_bytes();
  const double ratio = static_cast<double>(egress) / static_cast<double>(model_bytes);

  const auto trainers = plan.roster().trainers;
  std::string text = engine_tensor_table(plan) + '\n' + rank_table(plan) + '\n';
  if (trainers > 1) text += trainer_table(plan) + '\n';
  text += table({{"model", fmt::format("{}, {} parameters, {}", name(plan.model.config.family),
                                       plan.model.tensor_count(), size(model_bytes))},
                 {"group", fmt::format("tp {}, dp {}: {} ranks with {}", plan.tp, plan.dp, plan.roster().rank_count(),
                                       trainers == 1 ? "the trainer" : fmt::format("{} trainer ranks", trainers))},
                 {"slot of an engine rank", size(plan.slot_bytes)},
                 {"trainer egress", fmt::format("{}, {:.4f} x the model", size(egress), ratio)},
                 {"replication adds", plan.tp == 1 ? "nothing" : size(plan.replication_bytes())}},
                {false, false});
  text += replication_table(plan);
  text +=
      table({{"plan digest           ", plan.digest},
             {"coverage", violation.empty() ? "proven: every byte of a slot is written once or is padding, every byte "
                                              "of the model is read"
                                            : "VIOLATED: " + violation}},
            {false, false});
  return text;
}

}  // namespace weightcast
