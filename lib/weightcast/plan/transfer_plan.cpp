#include "weightcast/plan/transfer_plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <bit>
#include <memory>
#include <span>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/expects.hpp"

namespace weightcast {
namespace {

std::uint64_t element_bytes(const ParameterRule& rule) {
  return static_cast<std::uint64_t>(bits(rule.info.dtype)) / 8;
}

void require_divides(const Model& model, std::uint64_t tp) {
  try {
    for (const auto& rule : model.parameters) shard_of(rule, tp, 0);
  } catch (const Error& error) {
    throw Error(error.code(), error.what(),
                fmt::format("this model can be cut for tp {}", fmt::join(possible_tp(model), ", ")));
  }
}

void place_parameters(TransferPlan& plan) {
  for (const auto& rule : plan.model.parameters) {
    plan.source_offsets.push_back(plan.source_bytes);
    plan.source_bytes += round_up(rule.info.size_bytes().value(), TransferPlan::alignment_bytes);
  }
}

/// Lays out the slot: parts of one engine tensor are neighbours in the model, so one pass is enough.
void place_engine_tensors(TransferPlan& plan) {
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    const ParameterRule& rule = plan.model.parameters[i];
    const MatrixShape extent = shard_extent(rule, plan.tp);
    if (rule.part == 0) {
      plan.engine_tensors.push_back({rule.engine_tensor, rule.info.dtype, {0, extent.columns}, plan.slot_bytes, 0, {}});
    }
    EngineTensor& tensor = plan.engine_tensors.back();
    WEIGHTCAST_EXPECTS(tensor.name == rule.engine_tensor && tensor.shape.columns == extent.columns);
    tensor.shape.rows += extent.rows;
    tensor.size_bytes = tensor.shape.rows * tensor.shape.columns * element_bytes(rule);
    tensor.parameters.push_back(i);
    plan.slot_bytes = round_up(tensor.offset + tensor.size_bytes, TransferPlan::alignment_bytes);
  }
}

RankPlan plan_rank(const TransferPlan& plan, std::uint64_t t) {
  RankPlan rank;
  rank.shards.resize(plan.model.parameters.size());
  for (const auto& tensor : plan.engine_tensors) {
    std::uint64_t destination = tensor.offset;
    for (const auto i : tensor.parameters) {
      const ParameterRule& rule = plan.model.parameters[i];
      const std::uint64_t element = element_bytes(rule), source_pitch = matrix_of(rule.info).columns * element;
      const std::uint64_t destination_pitch = tensor.shape.columns * element;
      const Slice slice = shard_of(rule, plan.tp, t);
      const std::uint64_t extent_bytes = shard_extent(rule, plan.tp).rows * destination_pitch;
      const std::uint64_t held_bytes = slice.rows * destination_pitch;
      if (!slice.empty()) {
        Segment& shard = rank.shards[i];
        shard.source = plan.source_offsets[i] + slice.row * source_pitch + slice.column * element;
        shard.destination = destination;
        shard.row_bytes = slice.columns * element;
        shard.rows = slice.rows;
        shard.source_pitch = slice.rows == 1 ? shard.row_bytes : source_pitch;
        shard.destination_pitch = slice.rows == 1 ? shard.row_bytes : destination_pitch;
        rank.received_bytes += shard.size_bytes();
      }
      if (held_bytes < extent_bytes) rank.padding.push_back({destination + held_bytes, extent_bytes - held_bytes});
      destination += extent_bytes;
    }
  }
  rank.moves = coalesce(rank.shards);
  return rank;
}

/// Feeds a canonical serialisation to XXH3: integers as 8 bytes little-endian, texts and lists behind their length.
class PlanHasher {
 public:
  PlanHasher() : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }

  template <typename... Integers>
  void integers(Integers... values) {
    static_assert(std::endian::native == std::endian::little);
    for (const std::uint64_t value : {static_cast<std::uint64_t>(values)...}) update(&value, sizeof value);
  }
  void text(std::string_view value) {
    integers(value.size());
    update(value.data(), value.size());
  }
  template <typename Range>
  void list(const Range& range) {
    integers(range.size());
    for (const auto& item : range) add(item);
  }
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const noexcept { XXH3_freeState(state); }
  };

  void update(const void* data, std::size_t size) { XXH3_128bits_update(state_.get(), data, size); }
  void add(std::uint64_t value) { integers(value); }
  void add(const Segment& s) {
    integers(s.source, s.destination, s.row_bytes, s.rows, s.source_pitch, s.destination_pitch);
  }
  void add(const ByteRange& range) { integers(range.offset, range.size_bytes); }
  void add(const ParameterRule& rule) {
    text(rule.info.name);
    text(weightcast::name(rule.info.dtype));
    list(rule.info.shape);
    text(rule.engine_tensor);
    text(weightcast::name(rule.kind));
    integers(rule.part, rule.units);
  }
  void add(const EngineTensor& tensor) {
    text(tensor.name);
    text(weightcast::name(tensor.dtype));
    integers(tensor.shape.rows, tensor.shape.columns, tensor.offset, tensor.size_bytes);
    list(tensor.parameters);
  }
  void add(const RankPlan& rank) {
    list(rank.shards);
    list(rank.moves);
    list(rank.padding);
    integers(rank.received_bytes);
  }

  std::unique_ptr<XXH3_state_t, Free> state_;
};

std::string digest_of(const TransferPlan& plan) {
  PlanHasher hasher;
  hasher.text("weightcast.plan/1");
  hasher.text(name(plan.model.config.family));
  hasher.integers(plan.tp, plan.dp, plan.source_bytes, plan.slot_bytes);
  hasher.list(plan.model.parameters);
  hasher.list(plan.source_offsets);
  hasher.list(plan.engine_tensors);
  hasher.list(plan.ranks);
  return hasher.hex();
}

}  // namespace

std::uint64_t TransferPlan::egress_bytes(std::size_t first, std::size_t count) const noexcept {
  std::uint64_t sum = 0;
  for (const auto& rank : ranks) {
    for (const auto& shard : std::span(rank.shards).subspan(first, count)) sum += shard.size_bytes();
  }
  return sum;
}

std::uint64_t TransferPlan::replication_bytes() const noexcept {
  return egress_bytes() - model.size_bytes();
}

std::uint64_t TransferPlan::offset_in_parameter(std::size_t tp_rank, std::size_t parameter) const noexcept {
  const Segment& shard = ranks[tp_rank].shards[parameter];
  return shard.rows == 0 ? 0 : shard.source - source_offsets[parameter];
}

bool TransferPlan::copy(std::size_t tp_rank, std::size_t parameter) const noexcept {
  return is_copy(model.parameters[parameter], tp, tp_rank);
}

TransferPlan make_plan(const Model& model, std::uint64_t tp, std::uint64_t dp) {
  if (tp == 0 || dp == 0) throw Error(ExitCode::config, "tp and dp must be 1 or more");
  require_divides(model, tp);
  TransferPlan plan;
  plan.tp = tp;
  plan.dp = dp;
  plan.model = model;
  place_parameters(plan);
  place_engine_tensors(plan);
  for (std::uint64_t t = 0; t < tp; ++t) plan.ranks.push_back(plan_rank(plan, t));
  plan.digest = digest_of(plan);
  return plan;
}

}  // namespace weightcast
