// The C++ side of plan_oracle.py: for every line of the standard input, a request in JSON, a line with the plan.
//   {"config": a config.json, "layout": "whole" | "fsdp" | "tp" | "custom", "trainers": R, "tp": T, "dp": D,
//    "ep": G,    1 where it is left out
//    "rectangles": [[trainer rank, parameter, row, column, rows, columns], ...]}    the last for custom layouts only
// What moves is [trainer rank, source offset and pitch, destination offset and pitch, bytes of a row, rows]. What is
// refused is {"refused": exit code, "message": ...}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/error.hpp"
#include "weightcast/plan/transfer_plan.hpp"

using namespace weightcast;
using nlohmann::json;

namespace {

SourceLayout layout_of(const json& request, const Model& model) {
  const auto kind = request.at("layout").get<std::string>();
  const auto trainers = request.at("trainers").get<std::uint64_t>();
  if (kind == "whole") return whole_layout(model, trainers);
  if (kind == "fsdp") return fsdp_layout(model, trainers);
  if (kind == "tp") return tp_layout(model, trainers);
  std::vector<HeldRectangle> rectangles;
  for (const auto& r : request.at("rectangles")) {
    rectangles.push_back({r.at(0).get<std::size_t>(),
                          static_cast<std::size_t>(model.find(r.at(1).get<std::string>())),
                          {r.at(2).get<std::uint64_t>(), r.at(3).get<std::uint64_t>(), r.at(4).get<std::uint64_t>(),
                           r.at(5).get<std::uint64_t>()}});
  }
  return custom_layout(model, trainers, rectangles);
}

json move(const Segment& s) {
  return {s.from, s.source_offset, s.source_pitch, s.destination_offset, s.destination_pitch, s.row_bytes, s.rows};
}

json moves(std::span<const Segment> segments) {
  json list = json::array();
  for (const auto& segment : segments) list.push_back(move(segment));
  return list;
}

/// What these parts carry, in their order: copies, and segments that are none.
json moves(const Schedule& schedule, std::span<const Part> parts) {
  json list = json::array();
  for (const auto& part : parts) {
    for (const auto& c : part.copies.of(schedule.copies))
      list.push_back(
          {c.from, c.source_offset, c.size_bytes, c.destination_offset, c.size_bytes, c.size_bytes, std::uint64_t{1}});
    for (const auto& segment : part.segments.of(schedule.segments)) {
      if (!segment.contiguous()) list.push_back(move(segment));
    }
  }
  return list;
}

/// The shards as if rank p were where parameter p is.
json shards(const RankPlan& rank) {
  json list = json::array();
  for (const auto& s : rank.shards) {
    if (s.rows == 0) continue;
    list.push_back({s.parameter_index, s.parameter_offset, s.parameter_pitch, s.destination_offset, s.destination_pitch,
                    s.row_bytes, s.rows});
  }
  return list;
}

json pieces(const TransferPlan& plan, const SourceRegion& region) {
  json list = json::array();
  for (const auto& [parameter, slice, offset, pitch] : region.pieces)
    list.push_back({plan.model.parameters[parameter].info.name, slice.row, slice.column, slice.rows, slice.columns,
                    offset, pitch});
  return list;
}

json show(const TransferPlan& plan) {
  json shown{{"slot_bytes", plan.slot_bytes}, {"violation", prove_coverage(plan)}};
  for (const auto& rule : plan.model.parameters) shown["parameters"].push_back({rule.info.name, rule.info.shape});
  for (const auto& tensor : plan.engine_tensors)
    shown["engine_tensors"].push_back({tensor.name, tensor.offset, tensor.size_bytes});
  for (const auto& region : plan.sources.ranks)
    shown["regions"].push_back({{"size_bytes", region.size_bytes}, {"pieces", pieces(plan, region)}});
  for (const auto& rank : plan.ranks) {
    json padding = json::array();
    for (const auto& range : rank.padding) padding.push_back({range.offset, range.size_bytes});
    shown["ranks"].push_back({{"received_bytes", rank.received_bytes},
                              {"padding", padding},
                              {"shards", shards(rank)},
                              {"segments", moves(rank.schedule.segments)},
                              {"whole", moves(rank.schedule, rank.schedule.whole)},
                              {"single", moves(rank.schedule, rank.schedule.single)},
                              {"relay", moves(rank.relay, rank.relay.whole)}});
  }
  return shown;
}

json answer(const std::string& line) {
  const auto request = json::parse(line);
  try {
    const auto model = build_model(parse_model_config(request.at("config").dump(), "config"),
                                   {.ep = request.value("ep", std::uint64_t{1})});
    return show(make_plan(model, request.at("tp").get<std::uint64_t>(), request.at("dp").get<std::uint64_t>(),
                          layout_of(request, model)));
  } catch (const Error& error) {
    return {{"refused", static_cast<int>(error.code())}, {"message", error.what()}};
  }
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) std::cout << answer(line) << std::endl;
  return 0;
}
