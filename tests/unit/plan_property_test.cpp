// Plans of random models, held against a second reading of the sharding rules and against a proof by counting bytes.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

using Bytes = std::vector<unsigned char>;

/// Uniform in [from, to]: the first cases are as large as the last.
std::uint64_t number(std::uint64_t from, std::uint64_t to) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(from, to + 1));
}

/// A random small model that can be cut in several ways.
TransferPlan random_plan() {
  ModelConfig c;
  c.family = *rc::gen::element(Family::llama, Family::qwen2, Family::qwen3);
  c.layers = number(1, 3);
  c.hidden = number(1, 12);
  c.kv_heads = number(1, 4);
  c.heads = c.kv_heads * number(1, 4);
  c.head_dim = number(1, 6);
  c.intermediate = c.heads * number(1, 4);
  c.vocabulary = 64 * c.heads - number(0, 63);
  c.tied_embeddings = *rc::gen::arbitrary<bool>();
  c.attention_bias = c.family == Family::qwen2 || *rc::gen::arbitrary<bool>();
  c.attention_output_bias = c.family != Family::qwen2 && c.attention_bias;
  c.mlp_bias = c.family == Family::llama && *rc::gen::arbitrary<bool>();
  c.dtype = *rc::gen::element(DType::BF16, DType::F32);
  const Model model = build_model(c);
  const std::vector<std::uint64_t> choices = possible_tp(model);
  const std::uint64_t last = choices.size() - 1, tp = choices[std::max(number(0, last), number(0, last))];
  RC_TAG(c.heads, tp);
  return make_plan(model, tp, number(1, 3));
}

/// Calls `visit(source, destination)` for each byte of the segment.
void each_byte(const Segment& s, const std::function<void(std::uint64_t, std::uint64_t)>& visit) {
  for (std::uint64_t row = 0; row < s.rows; ++row) {
    for (std::uint64_t i = 0; i < s.row_bytes; ++i) {
      visit(s.source + row * s.source_pitch + i, s.destination + row * s.destination_pitch + i);
    }
  }
}

constexpr std::uint32_t untouched = ~std::uint32_t{0}, padded = untouched - 1;

/// Where each byte of a slot comes from, by counting. False when a byte has two origins or lies outside.
bool origins(const std::vector<Segment>& segments, const std::vector<ByteRange>& padding, const TransferPlan& plan,
             std::vector<std::uint32_t>& origin) {
  origin.assign(plan.slot_bytes, untouched);
  bool good = true;
  for (const auto& segment : segments) {
    each_byte(segment, [&](std::uint64_t source, std::uint64_t destination) {
      good = good && source < plan.source_bytes && destination < plan.slot_bytes && origin[destination] == untouched;
      if (good) origin[destination] = static_cast<std::uint32_t>(source);
    });
  }
  for (const auto& range : padding) {
    for (std::uint64_t i = range.offset; i < range.offset + range.size_bytes; ++i) {
      good = good && i < plan.slot_bytes && origin[i] == untouched;
      if (good) origin[i] = padded;
    }
  }
  return good;
}

/// The claim of prove_coverage(), checked byte by byte.
bool covers(const TransferPlan& plan) {
  std::vector<std::uint64_t> reads(plan.source_bytes, 0);
  for (const auto& rank : plan.ranks) {
    std::vector<std::uint32_t> from_shards, from_moves;
    if (!origins(rank.shards, rank.padding, plan, from_shards)) return false;
    if (!origins(rank.moves, rank.padding, plan, from_moves) || from_moves != from_shards) return false;
    std::uint64_t received = 0;
    std::vector<bool> in_tensor(plan.slot_bytes, false);
    for (const auto& tensor : plan.engine_tensors) {
      std::fill_n(in_tensor.begin() + static_cast<std::ptrdiff_t>(tensor.offset), tensor.size_bytes, true);
    }
    for (std::uint64_t i = 0; i < plan.slot_bytes; ++i) {
      if ((from_shards[i] != untouched) != in_tensor[i]) return false;
      if (from_shards[i] >= padded) continue;
      ++reads[from_shards[i]];
      ++received;
    }
    if (received != rank.received_bytes) return false;
  }
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    const ParameterRule& rule = plan.model.parameters[p];
    std::uint64_t holders = 1;
    if (rule.kind == ShardKind::replicated) holders = plan.tp;
    if (rule.kind == ShardKind::kv_heads && plan.tp > plan.model.config.kv_heads)
      holders = plan.tp / plan.model.config.kv_heads;
    for (std::uint64_t i = 0; i < rule.info.size_bytes().value(); ++i) {
      if (reads[plan.source_offsets[p] + i] != holders) return false;
    }
  }
  return true;
}

/// The table of the sharding rules, read again from the names alone: which rows and columns of a parameter rank t
/// holds, and from which row of its engine tensor on.
struct Place {
  std::uint64_t row, rows, column, columns, offset;
};
Place place_of(const ModelConfig& c, const TensorInfo& info, std::uint64_t T, std::uint64_t t) {
  const auto is = [&](std::string_view part) { return info.name.find(part) != std::string::npos; };
  const std::uint64_t H = c.heads, K = c.kv_heads, d = c.head_dim, I = c.intermediate;
  const std::uint64_t k = T < K ? K / T : 1, R = T < K ? 1 : T / K;
  const std::uint64_t columns = info.shape.size() == 1 ? 1 : info.shape[1];
  if (is("q_proj")) return {t * (H / T) * d, H / T * d, 0, columns, 0};
  if (is("k_proj")) return {t / R * k * d, k * d, 0, columns, H / T * d};
  if (is("v_proj")) return {t / R * k * d, k * d, 0, columns, (H / T + k) * d};
  if (is("o_proj.weight")) return {0, info.shape[0], t * (H * d / T), H * d / T, 0};
  if (is("gate_proj")) return {t * (I / T), I / T, 0, columns, 0};
  if (is("up_proj")) return {t * (I / T), I / T, 0, columns, I / T};
  if (is("down_proj.weight")) return {0, info.shape[0], t * (I / T), I / T, 0};
  if (is("embed_tokens") || is("lm_head")) {
    const std::uint64_t V = c.vocabulary, P = (V + 63) / 64 * 64;
    const std::uint64_t begin = std::min(t * P / T, V), end = std::min((t + 1) * P / T, V);
    return {begin, end - begin, 0, columns, 0};
  }
  return {0, info.shape[0], 0, columns, 0};
}

RC_GTEST_PROP(PlanProperty, EveryByteIsWhereTheProofSays, ()) {
  const TransferPlan plan = random_plan();
  RC_ASSERT(prove_coverage(plan) == std::string());
  RC_ASSERT(covers(plan));
  std::uint64_t received = 0;
  for (const auto& rank : plan.ranks) received += rank.received_bytes;
  RC_ASSERT(plan.egress_bytes() == received);
  RC_ASSERT(plan.replication_bytes() == received - plan.model.size_bytes());
}

RC_GTEST_PROP(PlanProperty, ScatteredWeightsLieByTheRulesAndGatherBack, ()) {
  const TransferPlan plan = random_plan();
  const ModelConfig& config = plan.model.config;
  const std::uint64_t element = static_cast<std::uint64_t>(bits(config.dtype)) / 8;
  Bytes source(plan.source_bytes);
  std::uint64_t state = *rc::gen::arbitrary<std::uint64_t>() | 1;
  for (auto& byte : source) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<unsigned char>(state >> 56);
  }
  Bytes gathered(plan.source_bytes, 0);
  for (std::uint64_t t = 0; t < plan.tp; ++t) {
    Bytes slot(plan.slot_bytes, 0xEE);
    for (const auto& range : plan.ranks[t].padding) std::memset(slot.data() + range.offset, 0, range.size_bytes);
    for (const auto& move : plan.ranks[t].moves) {
      each_byte(move, [&](std::uint64_t from, std::uint64_t to) { slot.at(to) = source.at(from); });
    }
    for (const auto& tensor : plan.engine_tensors) {
      const std::uint64_t tensor_pitch = tensor.shape.columns * element;
      std::uint64_t rows = 0;
      for (const auto p : tensor.parameters) {
        const TensorInfo& info = plan.model.parameters[p].info;
        const Place place = place_of(config, info, plan.tp, t);
        const std::uint64_t pitch = (info.shape.size() == 1 ? 1 : info.shape[1]) * element;
        RC_ASSERT(place.columns == tensor.shape.columns);
        for (std::uint64_t row = 0; row < place.rows; ++row) {
          const std::uint64_t at = plan.source_offsets[p] + (place.row + row) * pitch + place.column * element;
          const unsigned char* held = slot.data() + tensor.offset + (place.offset + row) * tensor_pitch;
          RC_ASSERT(std::memcmp(held, source.data() + at, tensor_pitch) == 0);
          std::memcpy(gathered.data() + at, held, tensor_pitch);
        }
        rows = place.offset + place.rows;
      }
      for (std::uint64_t i = rows * tensor_pitch; i < tensor.size_bytes; ++i) RC_ASSERT(slot[tensor.offset + i] == 0);
    }
  }
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    const auto begin = static_cast<std::ptrdiff_t>(plan.source_offsets[p]);
    const auto end = begin + static_cast<std::ptrdiff_t>(plan.model.parameters[p].info.size_bytes().value());
    RC_ASSERT(std::equal(gathered.begin() + begin, gathered.begin() + end, source.begin() + begin));
  }
}

RC_GTEST_PROP(PlanProperty, ADefectInAShardIsFound, ()) {
  TransferPlan plan = random_plan();
  RankPlan& rank = plan.ranks[number(0, plan.tp - 1)];
  std::vector<std::size_t> held;
  for (std::size_t i = 0; i < rank.shards.size(); ++i) {
    if (rank.shards[i].rows > 0) held.push_back(i);
  }
  RC_PRE(held.size() > 1);
  const std::size_t chosen = *rc::gen::elementOf(held), other = *rc::gen::elementOf(held);
  Segment& shard = rank.shards[chosen];
  const auto defect = number(0, 9);
  RC_TAG(defect);
  switch (defect) {
    case 0: shard.source += number(1, 64); break;
    case 1: shard.destination += number(1, 64); break;
    case 2: shard.source -= number(1, 64); break;  // may wrap around
    case 3: shard.destination -= number(1, 64); break;
    case 4: shard = Segment{}; break;
    case 5: --shard.rows; break;
    case 6: ++shard.rows; break;
    case 7:
      RC_PRE(chosen != other);
      shard = rank.shards[other];
      break;
    case 8: {  // what another rank reads
      const Segment& theirs = plan.ranks[number(0, plan.tp - 1)].shards[chosen];
      RC_PRE(theirs.rows == shard.rows && theirs.source != shard.source);
      shard.source = theirs.source;
      break;
    }
    default: RC_PRE(chosen != other); std::swap(shard.destination, rank.shards[other].destination);
  }
  rank.moves = coalesce(rank.shards);
  rank.received_bytes = 0;
  for (const auto& s : rank.shards) rank.received_bytes += s.size_bytes();
  const bool counted = covers(plan);
  // Two equal shapes swapped in the slot cover it, but not in the order of the engine tensor's parts, or not in the
  // tensor that is theirs: the proof is stricter there than counting.
  RC_ASSERT(!counted || defect == 9);
  RC_ASSERT(prove_coverage(plan) != std::string());
}

RC_GTEST_PROP(PlanProperty, ADefectInAMoveIsFound, ()) {
  TransferPlan plan = random_plan();
  RankPlan& rank = plan.ranks[number(0, plan.tp - 1)];
  const std::size_t chosen = number(0, rank.moves.size() - 1);
  const auto at = rank.moves.begin() + static_cast<std::ptrdiff_t>(chosen);
  const auto defect = number(0, 5);
  RC_TAG(defect);
  switch (defect) {
    case 0: at->source += number(1, 64); break;
    case 1: at->destination += number(1, 64); break;
    case 2: rank.moves.erase(at); break;
    case 3: rank.moves.insert(at, Segment(*at)); break;
    case 4: --at->rows; break;
    default: at->row_bytes += number(1, 8);
  }
  RC_ASSERT(!covers(plan));
  RC_ASSERT(prove_coverage(plan) != std::string());
}

RC_GTEST_PROP(PlanProperty, ADefectInTheLayoutIsFound, ()) {
  TransferPlan plan = random_plan();
  RankPlan& rank = plan.ranks.back();
  const auto defect = number(0, 8);
  RC_TAG(defect);
  switch (defect) {
    case 0: plan.slot_bytes -= TransferPlan::alignment_bytes; break;
    case 1: plan.source_bytes -= TransferPlan::alignment_bytes; break;
    case 2: rank.received_bytes += 1; break;
    case 3:
      RC_PRE(!rank.padding.empty());
      rank.padding.pop_back();
      break;
    case 8:
      RC_PRE(!rank.padding.empty());
      rank.padding.insert(rank.padding.end(), 2, ByteRange(rank.padding.front()));
      break;
    case 4: rank.padding.push_back({number(0, plan.slot_bytes - 1), 1}); break;
    case 5: plan.source_offsets.back() = plan.source_offsets.front(); break;
    case 6: plan.engine_tensors.back().offset = plan.engine_tensors.front().offset; break;
    default: plan.ranks.pop_back();
  }
  RC_ASSERT(prove_coverage(plan) != std::string());
}

RC_GTEST_PROP(PlanProperty, EqualPlansHaveEqualDigests, ()) {
  const TransferPlan plan = random_plan();
  RC_ASSERT(make_plan(plan.model, plan.tp, plan.dp).digest == plan.digest);
  RC_ASSERT(make_plan(plan.model, plan.tp, plan.dp + 1).digest != plan.digest);
  ModelConfig other = plan.model.config;
  ++other.layers;
  RC_ASSERT(make_plan(build_model(other), plan.tp, plan.dp).digest != plan.digest);
}

RC_GTEST_PROP(PlanProperty, CoalescedSegmentsCarryTheSameBytes, ()) {
  // Random segments side by side in the slot; many continue their neighbour in the source as well.
  TransferPlan plan;
  std::vector<Segment> segments;
  std::uint64_t source = 0;
  const auto count = number(1, 12);
  for (std::uint64_t i = 0; i < count; ++i) {
    Segment s;
    s.row_bytes = number(1, 3);
    s.rows = number(1, 4);
    const std::uint64_t gap = number(0, 1);
    s.source_pitch = s.rows == 1 ? s.row_bytes : s.row_bytes + gap;
    s.destination_pitch = s.row_bytes;
    s.source = source + number(0, 1);
    s.destination = plan.slot_bytes;
    source = s.source + s.rows * s.source_pitch;
    plan.slot_bytes += s.size_bytes();
    plan.source_bytes = source;
    segments.push_back(s);
  }
  std::vector<std::uint32_t> before, after;
  RC_ASSERT(origins(segments, {}, plan, before));
  const std::vector<Segment> merged = coalesce(segments);
  RC_ASSERT(origins(merged, {}, plan, after));
  RC_ASSERT(before == after);
  RC_ASSERT(merged.size() <= segments.size());
  for (std::size_t i = 1; i < merged.size(); ++i) RC_ASSERT(merged[i - 1].destination < merged[i].destination);
}

}  // namespace
}  // namespace weightcast
