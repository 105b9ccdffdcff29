#include "weightcast/plan/transfer_plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t message_limit_bytes = 1 * mebibyte;    // digested while still in cache
constexpr std::uint64_t message_buffers_bytes = 6 * mebibyte;  // of one message to each tp rank
constexpr std::uint64_t pack_buffers_bytes = 128 * mebibyte;   // of one pack step of each tp rank

void require_divides(const Model& model, std::uint64_t tp) {
  try {
    for (const auto& rule : model.parameters) shard_of(rule, tp, 0);
  } catch (const Error& error) {
    throw Error(error.code(), error.what(),
                fmt::format("this model can be cut for tp {}", fmt::join(possible_tp(model), ", ")));
  }
}

/// Lays out the slot: parts of one engine tensor are neighbours in the model, so one pass is enough. Sizes are those of
/// rank 0: where ranks own different experts, each owns as many.
void place_engine_tensors(TransferPlan& plan) {
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    const ParameterRule& rule = plan.model.parameters[i];
    const MatrixShape extent = shard_extent(rule, plan.tp, 0);
    if (rule.part == 0) {
      plan.engine_tensors.push_back({.name = rule.engine_tensor,
                                     .dtype = rule.info.dtype,
                                     .shape = {0, extent.columns},
                                     .experts = rule.experts / rule.ep,
                                     .offset = plan.slot_bytes,
                                     .size_bytes = 0,
                                     .parameters = {}});
    }
    EngineTensor& tensor = plan.engine_tensors.back();
    WEIGHTCAST_EXPECTS(tensor.name == rule.engine_tensor && tensor.shape.columns == extent.columns);
    tensor.shape.rows += extent.rows;
    tensor.size_bytes = tensor.shape.rows * tensor.shape.columns * element_bytes(rule.info.dtype);
    tensor.parameters.push_back(i);
    plan.slot_bytes = round_up(tensor.offset + tensor.size_bytes, TransferPlan::alignment_bytes);
  }
}

/// What one rank holds, and the padding beside it.
RankPlan place_shards(const TransferPlan& plan, std::uint64_t t) {
  RankPlan rank;
  rank.shards.resize(plan.model.parameters.size());
  for (const auto& rule : plan.model.parameters) rank.copies.push_back(is_copy(rule, plan.tp, t));
  for (const auto& tensor : plan.engine_tensors) {
    std::uint64_t destination = tensor.offset;
    for (const auto i : tensor.parameters) {
      const ParameterRule& rule = plan.model.parameters[i];
      const std::uint64_t element = element_bytes(rule.info.dtype), pitch = matrix_of(rule.info).columns * element;
      const std::uint64_t destination_pitch = tensor.shape.columns * element;
      const Slice slice = shard_of(rule, plan.tp, t);
      const std::uint64_t extent_bytes = shard_extent(rule, plan.tp, t).rows * destination_pitch;
      const std::uint64_t held_bytes = slice.rows * destination_pitch;
      Shard& shard = rank.shards[i];
      shard.parameter_index = i;
      if (!slice.empty()) {
        shard.parameter_offset = slice.row * pitch + slice.column * element;
        shard.destination_offset = destination;
        shard.row_bytes = slice.columns * element;
        shard.rows = slice.rows;
        shard.parameter_pitch = slice.rows == 1 ? shard.row_bytes : pitch;
        shard.destination_pitch = slice.rows == 1 ? shard.row_bytes : destination_pitch;
        rank.received_bytes += shard.size_bytes();
      }
      if (held_bytes < extent_bytes) rank.padding.push_back({destination + held_bytes, extent_bytes - held_bytes});
      destination += extent_bytes;
    }
  }
  return rank;
}

/// Where pieces and shards meet; what several trainer ranks have comes from one of them.
void cross(TransferPlan& plan) {
  for (const auto& holding : holdings_of(plan.sources)) {
    std::vector<std::size_t> receivers;
    for (std::size_t t = 0; t < plan.tp; ++t) {
      if (segment_of(plan, t, holding.piece()).rows != 0) receivers.push_back(t);
    }
    for (std::size_t i = 0; i < receivers.size(); ++i) {
      const auto& [from, piece] = holding.sender(i, receivers.size());
      auto& segment = plan.ranks[receivers[i]].schedule.segments.emplace_back(segment_of(plan, receivers[i], piece));
      segment.from = from;
    }
  }
  const auto trainers = plan.sources.ranks.size();
  for (std::size_t t = 0; t < plan.tp; ++t) {
    const auto walked = [&, begin = t * trainers / plan.tp](const Segment& s) {
      return std::pair((s.from + trainers - begin) % trainers, s.parameter_index);
    };
    std::ranges::stable_sort(plan.ranks[t].schedule.segments, {}, walked);
  }
}

/// Bounds what transports need between source and sink, whatever tp is; one row may be longer.
void size_buffers(TransferPlan& plan) {
  std::uint64_t longest_row = 0;
  for (const auto& rank : plan.ranks) {
    for (const auto& segment : rank.schedule.segments) longest_row = std::max(longest_row, segment.row_bytes);
  }
  plan.message_bytes = std::clamp<std::uint64_t>(message_buffers_bytes / plan.tp, 64 * kibibyte, message_limit_bytes);
  plan.pack_bytes = std::max(
      longest_row, pack_buffers_bytes / plan.tp / TransferPlan::alignment_bytes * TransferPlan::alignment_bytes);
}

void schedule_rank(const TransferPlan& plan, RankPlan& rank) {
  auto segments = std::move(rank.schedule.segments), relayed = segments;
  for (auto& segment : relayed) {
    segment.source_offset = segment.destination_offset;
    segment.source_pitch = segment.destination_pitch;
  }
  const auto count = rank.shards.size();
  const auto cuts = cuts_of(segments, count, plan.dp);
  rank.schedule = make_schedule(std::move(segments), count, cuts, plan.pack_bytes);
  if (plan.dp > 1) rank.relay = make_schedule(std::move(relayed), count, cuts, plan.pack_bytes);
}

}  // namespace

std::uint64_t TransferPlan::egress_bytes(std::size_t first, std::size_t count) const noexcept {
  std::uint64_t sum = 0;
  for (const auto& rank : ranks) {
    for (const auto& shard : std::span(rank.shards).subspan(first, count)) sum += shard.size_bytes();
  }
  return sum;
}

std::uint64_t TransferPlan::egress_bytes_of(std::size_t trainer_rank, const Range& parameters) const noexcept {
  std::uint64_t sum = 0;
  for (const auto& rank : ranks) {
    for (const auto& segment : rank.schedule.segments_of(trainer_rank, parameters)) sum += segment.size_bytes();
  }
  return sum;
}

std::uint64_t TransferPlan::held_bytes(std::size_t trainer_rank) const {
  std::uint64_t sum = 0;
  for (const auto& piece : sources.ranks.at(trainer_rank).pieces)
    sum += piece.slice.rows * piece.slice.columns * element_bytes(model.parameters[piece.parameter_index].info.dtype);
  return sum;
}

std::vector<std::size_t> TransferPlan::sinks(std::size_t trainer_rank) const {
  std::vector<std::pair<std::uint64_t, std::size_t>> sinks;  // behind what they have received by then
  for (std::size_t t = 0; t < ranks.size(); ++t) {
    const auto& schedule = ranks[t].schedule;
    const auto* const supply = schedule.supply(trainer_rank);
    if (supply == nullptr) continue;
    std::uint64_t before = 0;
    for (const auto& segment : std::span(schedule.segments).first(supply->segments.first))
      before += segment.size_bytes();
    sinks.emplace_back(before, t);
  }
  std::ranges::sort(sinks);
  std::vector<std::size_t> result;
  for (const auto& sink : sinks) result.push_back(sink.second);
  return result;
}

std::uint64_t TransferPlan::replication_bytes() const noexcept {
  return egress_bytes() - model.size_bytes();
}

bool TransferPlan::copy(std::size_t tp_rank, std::size_t parameter) const noexcept {
  return ranks[tp_rank].copies[parameter];
}

std::vector<std::uint64_t> shape_of(const TransferPlan& plan, const EngineTensor& tensor) {
  const auto first = tensor.parameters.front();
  const auto rank = plan.model.parameters[first].info.shape.size();
  const auto [rows, columns] = tensor.shape;
  if (tensor.experts == 0) return rank < 2 ? std::vector{rows} : std::vector{rows, columns};
  const bool stacked = plan.model.tensor_end(first) > first + 1;  // in the checkpoint, too
  if (stacked && rank == 2) return {tensor.experts, columns};
  return {tensor.experts, rows / tensor.experts, columns};
}

Segment segment_of(const TransferPlan& plan, std::size_t tp_rank, const Piece& piece) {
  const ParameterRule& rule = plan.model.parameters[piece.parameter_index];
  const Shard& shard = plan.ranks[tp_rank].shards[piece.parameter_index];
  const Slice held = shard_of(rule, plan.tp, tp_rank), common = intersection(held, piece.slice);
  Segment segment;
  segment.parameter_index = piece.parameter_index;
  if (common.empty()) return segment;
  const std::uint64_t element = element_bytes(rule.info.dtype), pitch = matrix_of(rule.info).columns * element;
  const auto place = [&](std::uint64_t offset, std::uint64_t row_pitch, const Slice& whole) {
    return offset + (common.row - whole.row) * row_pitch + (common.column - whole.column) * element;
  };
  segment.row_bytes = common.columns * element;
  segment.rows = common.rows;
  segment.parameter_offset = place(0, pitch, {});
  segment.source_offset = place(piece.offset, piece.pitch, piece.slice);
  segment.destination_offset = place(shard.destination_offset, shard.destination_pitch, held);
  const bool one = common.rows == 1;
  segment.parameter_pitch = one ? segment.row_bytes : pitch;
  segment.source_pitch = one ? segment.row_bytes : piece.pitch;
  segment.destination_pitch = one ? segment.row_bytes : shard.destination_pitch;
  return segment;
}

Segment segment_of(const Model& model, const Piece& piece) {
  const auto& info = model.parameters[piece.parameter_index].info;
  const auto element = element_bytes(info.dtype), pitch = matrix_of(info).columns * element;
  Segment segment;
  segment.parameter_index = piece.parameter_index;
  segment.parameter_offset = piece.slice.row * pitch + piece.slice.column * element;
  segment.source_offset = segment.destination_offset = piece.offset;
  segment.row_bytes = piece.slice.columns * element;
  segment.rows = piece.slice.rows;
  const bool one = segment.rows == 1;
  segment.parameter_pitch = one ? segment.row_bytes : pitch;
  segment.source_pitch = segment.destination_pitch = one ? segment.row_bytes : piece.pitch;
  return segment;
}

TransferPlan make_plan(const Model& model, std::uint64_t tp, std::uint64_t dp, SourceLayout sources) {
  if (tp == 0 || dp == 0) throw Error(ExitCode::config, "tp and dp must be 1 or more");
  require_divides(model, tp);
  TransferPlan plan;
  plan.tp = tp;
  plan.dp = dp;
  plan.model = model;
  plan.sources = std::move(sources);
  place_engine_tensors(plan);
  for (std::uint64_t t = 0; t < tp; ++t) plan.ranks.push_back(place_shards(plan, t));
  cross(plan);
  size_buffers(plan);
  for (auto& rank : plan.ranks) schedule_rank(plan, rank);
  plan.digest = digest_of(plan);
  return plan;
}

TransferPlan make_plan(const Model& model, std::uint64_t tp, std::uint64_t dp) {
  return make_plan(model, tp, dp, whole_layout(model));
}

}  // namespace weightcast
