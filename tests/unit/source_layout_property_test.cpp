// Trainers that have their weights in pieces, of any number of ranks: proof, plan and bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "harness/random_layout.hpp"
#include "harness/random_model.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

using harness::number;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using Bytes = std::vector<unsigned char>;

Model random_model() {
  auto model = harness::random_model({.layers = 2, .hidden = 24, .group = 3, .head_dim = 5});
  RC_TAG(std::string(name(model.config.family)), model.format.ep);
  return model;
}

/// Of any kind; now and then not as dense as those that are made here.
SourceLayout random_layout(const Model& model) {
  auto layout = harness::random_layout(model);
  RC_TAG(layout.ranks.size());
  if (number(0, 3) == 0) harness::loosen(layout, model);
  return layout;
}

Bytes random_bytes(std::uint64_t size, std::uint64_t seed) {
  Bytes bytes(size);
  for (auto& byte : bytes) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<unsigned char>(seed >> 56);
  }
  return bytes;
}

/// Whole parameters, and the regions of trainer ranks that have them as the layout says.
struct Weights {
  std::vector<Bytes> parameters, regions;

  Weights(const Model& model, const SourceLayout& layout) {
    for (const auto& rule : model.parameters) {  // those of one tensor have its bytes
      if (rule.row > 0)
        parameters.push_back(parameters.back());
      else
        parameters.push_back(random_bytes(rule.info.size_bytes().value(), parameters.size() + 1));
    }
    for (const auto& rank : layout.ranks) {
      auto& region = regions.emplace_back(rank.size_bytes, 0xEE);
      for (const auto& piece : rank.pieces) {
        const auto& rule = model.parameters[piece.parameter_index];
        const auto element = element_bytes(rule.info.dtype), columns = matrix_of(rule.info).columns;
        for (std::uint64_t row = 0; row < piece.slice.rows; ++row) {
          const auto* from = parameters[piece.parameter_index].data() +
                             ((piece.slice.row + row) * columns + piece.slice.column) * element;
          std::copy_n(from, piece.slice.columns * element,
                      region.begin() + static_cast<std::ptrdiff_t>(piece.offset + row * piece.pitch));
        }
      }
    }
  }
};

/// What the slot must hold, by the sharding rules alone.
Bytes expected_slot(const TransferPlan& plan, std::size_t t, const Weights& weights) {
  Bytes slot(plan.slot_bytes, 0);
  for (const auto& tensor : plan.engine_tensors) {
    auto destination = tensor.offset;
    for (const auto p : tensor.parameters) {
      const auto& rule = plan.model.parameters[p];
      const auto held = shard_of(rule, plan.tp, t);
      const auto element = element_bytes(rule.info.dtype), columns = matrix_of(rule.info).columns;
      for (std::uint64_t row = 0; row < held.rows; ++row) {
        std::copy_n(weights.parameters[p].data() + ((held.row + row) * columns + held.column) * element,
                    held.columns * element,
                    slot.begin() + static_cast<std::ptrdiff_t>(destination + row * held.columns * element));
      }
      destination += shard_extent(rule, plan.tp, t).rows * tensor.shape.columns * element;
    }
  }
  return slot;
}

void copy_rows_of(const Segment& s, const Bytes& from, Bytes& to) {
  for (std::uint64_t row = 0; row < s.rows; ++row) {
    RC_ASSERT(s.source_offset + row * s.source_pitch + s.row_bytes <= from.size());
    RC_ASSERT(s.destination_offset + row * s.destination_pitch + s.row_bytes <= to.size());
    std::memcpy(to.data() + s.destination_offset + row * s.destination_pitch,
                from.data() + s.source_offset + row * s.source_pitch, s.row_bytes);
  }
}

TransferPlan random_plan(const Model& model, const SourceLayout& layout) {
  const auto choices = possible_tp(model);
  const auto tp = choices[number(0, choices.size() - 1)], dp = number(1, 2);
  RC_TAG(tp, dp);
  return make_plan(model, tp, dp, layout);
}

/// What the parts of a schedule carry, by copies and tasks, from regions to a slot. Returns the bytes.
std::uint64_t execute(const Schedule& schedule, std::span<const Part> parts, const std::vector<Bytes>& regions,
                      Bytes& slot) {
  std::uint64_t bytes = 0;
  for (const auto& part : parts) {
    std::vector<Segment> tasks;
    for (const auto& copy : part.copies.of(schedule.copies)) {
      Segment& s = tasks.emplace_back();
      s.from = copy.from;
      s.source_offset = copy.source_offset;
      s.destination_offset = copy.destination_offset;
      s.row_bytes = copy.size_bytes;
      s.rows = 1;
    }
    for (const auto& segment : part.segments.of(schedule.segments)) {
      if (!segment.contiguous()) append_tasks(segment, number(1, 200), tasks);
    }
    for (const auto& task : tasks) {
      RC_ASSERT(task.from == part.from);
      copy_rows_of(task, regions.at(task.from), slot);
      bytes += task.size_bytes();
    }
  }
  return bytes;
}

RC_GTEST_PROP(SourceLayout, EveryLayoutIsProvenAndFillsEverySlot, ()) {
  const auto model = random_model();
  const auto layout = random_layout(model);
  RC_ASSERT(prove_layout(model, layout) == std::string());
  const auto plan = random_plan(model, layout);
  RC_ASSERT(plan.roster().trainers == layout.ranks.size());
  RC_ASSERT(prove_coverage(plan) == std::string());
  const Weights weights(model, layout);
  for (std::size_t t = 0; t < plan.tp; ++t) {
    const auto expected = expected_slot(plan, t, weights);
    const auto& rank = plan.ranks[t];
    for (const bool whole : {true, false}) {
      Bytes slot(plan.slot_bytes, 0), next(plan.slot_bytes, 0);
      const auto parts = [&](const Schedule& s) -> std::span<const Part> { return whole ? s.whole : s.single; };
      RC_ASSERT(execute(rank.schedule, parts(rank.schedule), weights.regions, slot) == rank.received_bytes);
      RC_ASSERT(slot == expected);
      if (plan.dp == 1) continue;
      RC_ASSERT(execute(rank.relay, parts(rank.relay), std::vector(layout.ranks.size(), slot), next) ==
                rank.received_bytes);
      RC_ASSERT(next == expected);
    }
  }
}

/// Also of the largest groups, and held by the proof alone: it does not look at bytes.
RC_GTEST_PROP(SourceLayout, EveryPlanIsProven, ()) {
  const auto model = harness::random_model({.layers = 4, .hidden = 96, .group = 4, .head_dim = 16});
  const auto plan = random_plan(model, random_layout(model));
  RC_ASSERT(prove_coverage(plan) == std::string());
}

RC_GTEST_PROP(SourceLayout, WhatLeavesEachRankAddsUp, ()) {
  const auto model = random_model();
  const auto plan = random_plan(model, random_layout(model));
  const auto count = model.parameters.size();
  const Range some{number(0, count - 1), 1};
  std::uint64_t all = 0, of_some = 0, received = 0;
  for (std::size_t from = 0; from < plan.sources.ranks.size(); ++from) {
    all += plan.egress_bytes_of(from);
    of_some += plan.egress_bytes_of(from, some);
    std::vector<std::size_t> receivers;
    for (std::size_t t = 0; t < plan.tp; ++t) {
      if (plan.ranks[t].schedule.supply(from) != nullptr) receivers.push_back(t);
    }
    auto sinks = plan.sinks(from);
    std::ranges::sort(sinks);
    RC_ASSERT(sinks == receivers);
    RC_ASSERT((plan.egress_bytes_of(from) == 0) == sinks.empty());
  }
  for (const auto& rank : plan.ranks) received += rank.received_bytes;
  RC_ASSERT(all == received);
  RC_ASSERT(all == plan.egress_bytes());
  RC_ASSERT(of_some == plan.egress_bytes(some.first, some.count));
}

RC_GTEST_PROP(SourceLayout, WhoHoldsTheSameSendsItAsOftenAsTheOthers, ()) {
  const auto model = random_model();
  const auto layout = random_layout(model);
  const auto plan = random_plan(model, layout);
  const auto sent = [&](const Holder& holder) {
    std::size_t times = 0;
    for (std::size_t t = 0; t < plan.tp; ++t) {
      const auto segment = segment_of(plan, t, holder.piece);
      const auto theirs = plan.ranks[t].schedule.segments_of(holder.from, {holder.piece.parameter_index, 1});
      times += static_cast<std::size_t>(std::ranges::count_if(theirs, [&](const Segment& s) {
        return s.source_offset == segment.source_offset && static_cast<const Shard&>(s) == segment;
      }));
    }
    return times;
  };
  for (const auto& holding : holdings_of(layout)) {
    std::size_t least = plan.tp, most = 0, all = 0, receivers = 0;
    for (const auto& holder : holding.holders) {
      const auto times = sent(holder);
      least = std::min(least, times);
      most = std::max(most, times);
      all += times;
    }
    for (std::size_t t = 0; t < plan.tp; ++t) receivers += segment_of(plan, t, holding.piece()).rows != 0 ? 1 : 0;
    RC_ASSERT(all == receivers);
    RC_ASSERT(most - least <= 1u);
  }
}

RC_GTEST_PROP(SourceLayout, AnEngineCutAlikeTakesAllFromItsCounterpart, ()) {
  const auto model = build_model(random_model().config);  // trainers know of no groups that own experts
  const auto choices = possible_tp(model);
  const auto tp = choices[number(0, choices.size() - 1)];
  const auto plan = make_plan(model, tp, number(1, 2), tp_layout(model, tp));
  for (std::size_t t = 0; t < tp; ++t) {
    RC_ASSERT(plan.ranks[t].schedule.supplies.size() == 1u);
    RC_ASSERT(plan.ranks[t].schedule.supplies[0].from == t);
    RC_ASSERT(plan.egress_bytes_of(t) == plan.held_bytes(t));
  }
}

RC_GTEST_PROP(SourceLayout, EveryWalkBeginsElsewhereAndGoesRound, ()) {
  const auto model = random_model();
  const auto plan = random_plan(model, random_layout(model));
  const auto trainers = plan.sources.ranks.size();
  std::vector<std::size_t> begins;
  for (std::size_t t = 0; t < plan.tp; ++t) {
    begins.push_back(t * trainers / plan.tp);
    const auto& schedule = plan.ranks[t].schedule;
    std::vector<std::size_t> turns;  // how far each is from the first
    for (const auto& supply : schedule.supplies) turns.push_back((supply.from + trainers - begins[t]) % trainers);
    RC_ASSERT(std::ranges::is_sorted(turns));
    for (const auto& parts : {schedule.parts({0, model.parameters.size()}), schedule.parts({0, 1})}) {
      std::vector<std::size_t> walked;
      for (const auto& part : parts) walked.push_back((part.from + trainers - begins[t]) % trainers);
      RC_ASSERT(std::ranges::is_sorted(walked));
    }
  }
  if (trainers >= plan.tp) RC_ASSERT(std::ranges::adjacent_find(begins) == begins.end());
}

RC_GTEST_PROP(SourceLayout, PackedRowsAndChunksBringTheSameBytes, ()) {
  const auto model = random_model();
  const auto layout = harness::random_layout(model);  // rows are packed: chunks are sent from where they are
  const auto plan = random_plan(model, layout);
  const Weights weights(model, layout);
  const auto chunks = chunks_of(plan, number(1, 300));
  SourceLayout as_chunks;  // every chunk a rank of its own: no byte in none or in two
  for (const auto& chunk : chunks) as_chunks.ranks.push_back({{chunk.staged}, chunk.size_bytes});
  RC_ASSERT(prove_layout(model, as_chunks) == std::string());
  for (std::size_t t = 0; t < plan.tp; ++t) {
    const auto expected = expected_slot(plan, t, weights);
    Bytes slot(plan.slot_bytes, 0), packed(plan.slot_bytes, 0);
    for (const auto& chunk : chunks) {
      const auto& region = weights.regions[chunk.from];
      const auto begin = region.begin() + static_cast<std::ptrdiff_t>(chunk.source_offset);
      copy_rows_of(segment_of(plan, t, chunk.staged),
                   Bytes(begin, begin + static_cast<std::ptrdiff_t>(chunk.size_bytes)), slot);
    }
    RC_ASSERT(slot == expected);
    const auto& schedule = plan.ranks[t].schedule;
    for (const auto& segment : schedule.segments) {
      if (segment.contiguous()) copy_rows_of(segment, weights.regions[segment.from], packed);
    }
    for (const auto& part : schedule.whole) {
      for (const auto& step : part.pack_steps.of(schedule.pack_steps)) {
        for (const auto& rows : step.of(schedule.packed)) {
          const auto& segment = schedule.segments[rows.segment_index];
          copy_rows_of(segment.rows_from(rows.first_row, rows.row_count), weights.regions[segment.from], packed);
        }
      }
    }
    RC_ASSERT(packed == expected);
  }
}

/// Whether that rank has the same rectangle, be it elsewhere.
bool shares(const SourceRegion& region, const Piece& piece) {
  return std::ranges::any_of(region.pieces_of(piece.parameter_index),
                             [&](const Piece& other) { return other.slice == piece.slice; });
}

std::uint64_t end_of(const Model& model, const Piece& piece) {
  return piece.offset + (piece.slice.rows - 1) * piece.pitch +
         piece.slice.columns * element_bytes(model.parameters[piece.parameter_index].info.dtype);
}

RC_GTEST_PROP(SourceLayout, ADefectIsFound, ()) {
  const auto model = random_model();
  auto layout = random_layout(model);
  auto& rank = layout.ranks[number(0, layout.ranks.size() - 1)];
  RC_PRE(rank.pieces.size() > 1);
  const auto chosen = number(1, rank.pieces.size() - 1);
  auto& piece = rank.pieces[chosen];
  const auto defect = number(0, 7);
  RC_TAG(defect);
  if (defect < 4) {  // of what others have too, one may be without, or have another one's instead
    const auto has = [&](const SourceRegion& other) { return &other != &rank && shares(other, piece); };
    RC_PRE(std::ranges::none_of(layout.ranks, has));
  }
  switch (defect) {
    case 0: rank.pieces.erase(rank.pieces.begin() + static_cast<std::ptrdiff_t>(chosen)); break;
    case 1: ++piece.slice.row; break;
    case 2: --piece.slice.rows; break;
    case 3: ++piece.slice.columns; break;
    case 4: piece.offset = rank.pieces[chosen - 1].offset; break;
    case 5: rank.size_bytes = end_of(model, rank.pieces.back()) - 1; break;
    case 6:
      RC_PRE(piece.slice.rows > 1);
      piece.pitch = piece.slice.columns * element_bytes(model.parameters[piece.parameter_index].info.dtype) - 1;
      break;
    default: piece.parameter_index = model.parameters.size();
  }
  RC_ASSERT(prove_layout(model, layout) != std::string());
}

RC_GTEST_PROP(SourceLayout, ASegmentFromAnotherPlaceIsFound, ()) {
  const auto model = random_model();
  const auto layout = random_layout(model);
  auto plan = random_plan(model, layout);
  auto& rank = plan.ranks[number(0, plan.tp - 1)];
  auto segments = rank.schedule.segments;
  RC_PRE(!segments.empty());
  auto& segment = segments[number(0, segments.size() - 1)];
  const auto defect = number(0, 3);
  RC_TAG(defect);
  switch (defect) {
    case 0: segment.source_offset += number(1, 8); break;
    case 1: {  // a rank that has none of it, or is none
      const auto other = (segment.from + 1) % (layout.ranks.size() + 1);
      const bool has_none =
          other == layout.ranks.size() ||
          std::ranges::none_of(layout.ranks[other].pieces_of(segment.parameter_index),
                               [&](const Piece& piece) { return shares(layout.ranks[segment.from], piece); });
      RC_PRE(has_none);
      segment.from = other;
      break;
    }
    case 2: segment.parameter_offset += 1; break;
    default: --segment.rows;
  }
  const auto cuts = cuts_of(segments, rank.shards.size(), plan.dp);
  rank.schedule = make_schedule(std::move(segments), rank.shards.size(), cuts, plan.pack_bytes);
  RC_ASSERT(prove_coverage(plan) != std::string());
}

TEST(SourceLayout, OfOneRankThatHasEverything) {
  const auto model = build_model(load_model_config("tiny"));
  const auto layout = whole_layout(model);
  ASSERT_EQ(layout.ranks.size(), 1u);
  EXPECT_EQ(layout.ranks[0].pieces.size(), model.parameters.size());
  EXPECT_EQ(prove_layout(model, layout), "");
  EXPECT_EQ(make_plan(model, 2, 1).digest, make_plan(model, 2, 1, layout).digest);
  auto moved = layout;
  moved.ranks[0].pieces.back().offset += 256;
  moved.ranks[0].size_bytes += 256;
  EXPECT_NE(make_plan(model, 2, 1).digest, make_plan(model, 2, 1, moved).digest);
}

TEST(SourceLayout, WhatIsWrongIsNamed) {
  const auto model = build_model(load_model_config("tiny"));
  const auto shape = matrix_of(model.parameters[0].info);
  const auto half = shape.rows / 2;
  /// Of the first parameter these on trainer ranks 0 and 1; all others whole on rank 0.
  const auto two = [&](const Slice& first, const Slice& second) -> std::string {
    std::vector<HeldRectangle> held{{0, 0, first}, {1, 0, second}};
    for (std::size_t p = 1; p < model.parameters.size(); ++p) held.push_back({0, p, section_of(model.parameters[p])});
    try {
      custom_layout(model, 2, held);
      return {};
    } catch (const Error& error) {
      return error.what();
    }
  };
  const Slice upper{0, 0, half, shape.columns}, lower{half, 0, shape.rows - half, shape.columns};
  EXPECT_EQ(two(upper, lower), "");
  EXPECT_EQ(two(section_of(model.parameters[0]), section_of(model.parameters[0])), "") << "either may send it";
  EXPECT_THAT(two(upper, {half, 0, half - 1, shape.columns}),
              HasSubstr("model.embed_tokens.weight: no trainer rank has"));
  EXPECT_THAT(two(upper, {half - 1, 0, half, shape.columns}),
              AllOf(HasSubstr("model.embed_tokens.weight: trainer rank 0 has rows"), HasSubstr("trainer rank 1 has"),
                    HasSubstr("neither the same nor disjoint")));
  EXPECT_THAT(two(upper, {half, 0, shape.rows, shape.columns}),
              HasSubstr("model.embed_tokens.weight: trainer rank 1 has rows"));
}

TEST(SourceLayout, EveryParameterThatIsMissingIsNamed) {
  const auto model = build_model(load_model_config("tiny"));
  std::vector<HeldRectangle> held;
  for (std::size_t p = 2; p < model.parameters.size(); ++p) held.push_back({p % 3, p, section_of(model.parameters[p])});
  held.push_back(held.back());
  try {
    custom_layout(model, 3, held);
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(model.parameters[0].info.name + ": no trainer rank has any of it"),
                                    HasSubstr(model.parameters[1].info.name + ": no trainer rank has any of it"),
                                    HasSubstr(model.parameters.back().info.name + ": trainer rank")));
  }
}

TEST(SourceLayout, FsdpCutsRowsAsFsdp2Does) {
  const auto model = build_model(load_model_config("tiny"));
  const std::uint64_t trainers = 5;
  const auto layout = fsdp_layout(model, trainers);
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto shape = matrix_of(model.parameters[p].info);
    const auto each = (shape.rows + trainers - 1) / trainers;
    for (std::uint64_t rank = 0; rank < trainers; ++rank) {
      const auto begin = std::min(rank * each, shape.rows), end = std::min(begin + each, shape.rows);
      const auto pieces = layout.ranks[rank].pieces_of(p);
      ASSERT_EQ(pieces.size(), begin < end ? 1u : 0u) << model.parameters[p].info.name;
      if (begin == end) continue;
      EXPECT_EQ(pieces[0].slice, (Slice{begin, 0, end - begin, shape.columns}));
    }
  }
  EXPECT_THROW(make_layout(LayoutKind::custom, model, 2), Error);
  EXPECT_THROW(fsdp_layout(model, 0), Error);
}

TEST(SourceLayout, TheTableTellsWhatEachTrainerRankSends) {
  const auto model = build_model(load_model_config("tiny"));
  EXPECT_THAT(describe(make_plan(model, 2, 1)), Not(HasSubstr("sent bytes")));
  const auto plan = make_plan(model, 2, 1, fsdp_layout(model, 3));
  const auto text = describe(plan, PlanView{.all = true});
  EXPECT_THAT(text, AllOf(HasSubstr("trainer rank"), HasSubstr("held bytes"), HasSubstr("sent bytes")));
  for (std::size_t from = 0; from < 3; ++from) {
    EXPECT_THAT(text, AllOf(HasSubstr(std::to_string(plan.held_bytes(from))),
                            HasSubstr(std::to_string(plan.egress_bytes_of(from)))));
  }
}

}  // namespace
}  // namespace weightcast
