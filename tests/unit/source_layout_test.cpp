// Trainers that have their weights in pieces, of any number of ranks: proof, plan and bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "harness/random_model.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

using harness::number;
using testing::HasSubstr;
using Bytes = std::vector<unsigned char>;

Model random_model() {
  return build_model(harness::random_config({.layers = 2, .hidden = 24, .group = 3, .head_dim = 5}));
}

/// Lays a piece behind all others of that rank, in packed or in wider rows, after a gap or none.
void place(SourceLayout& layout, const Model& model, std::size_t from, std::size_t parameter, const Slice& slice) {
  if (slice.empty()) return;
  auto& region = layout.ranks[from];
  const auto row_bytes = slice.columns * element_bytes(model.parameters[parameter].info.dtype);
  Piece piece{parameter, slice, region.size_bytes + number(0, 2), row_bytes + (number(0, 3) == 0 ? number(1, 9) : 0)};
  region.size_bytes = piece.offset + (slice.rows - 1) * piece.pitch + row_bytes;
  region.pieces.push_back(piece);
}

/// Ascending places to cut [0, size) at, both ends included; some parts may be empty.
std::vector<std::uint64_t> random_cuts(std::uint64_t size, std::uint64_t parts) {
  std::vector<std::uint64_t> cuts{0, size};
  for (std::uint64_t i = 1; i < parts; ++i) cuts.push_back(number(0, size));
  std::ranges::sort(cuts);
  return cuts;
}

SourceLayout random_layout(const Model& model) {
  SourceLayout layout;
  layout.ranks.resize(number(1, 4));
  const auto ranks = layout.ranks.size();
  const auto form = number(0, 3);
  RC_TAG(form, ranks);
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto shape = matrix_of(model.parameters[p].info);
    std::vector<std::uint64_t> rows{0, shape.rows}, columns{0, shape.columns};
    switch (form) {
      case 0: {  // FSDP2: ceil(rows / R) rows each, the last ones short or empty
        const auto each = (shape.rows + ranks - 1) / ranks;
        rows.clear();
        for (std::size_t r = 0; r <= ranks; ++r) rows.push_back(std::min(r * each, shape.rows));
        break;
      }
      case 1: columns = random_cuts(shape.columns, ranks); break;
      case 2: rows = random_cuts(shape.rows, 3), columns = random_cuts(shape.columns, 3); break;
      default: break;  // each parameter whole, somewhere
    }
    for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
      for (std::size_t j = 0; j + 1 < columns.size(); ++j) {
        const auto from = form < 2 ? i + j : number(0, ranks - 1);
        place(layout, model, from, p, {rows[i], columns[j], rows[i + 1] - rows[i], columns[j + 1] - columns[j]});
      }
    }
  }
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
    for (const auto& rule : model.parameters)
      parameters.push_back(random_bytes(rule.info.size_bytes().value(), parameters.size() + 1));
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
      destination += shard_extent(rule, plan.tp).rows * tensor.shape.columns * element;
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
    const auto& schedule = plan.ranks[t].schedule;
    for (const bool whole : {true, false}) {
      Bytes slot(plan.slot_bytes, 0);
      for (const auto& part : whole ? schedule.whole : schedule.single) {
        for (const auto& copy : part.copies.of(schedule.copies)) {
          Segment s;
          s.source_offset = copy.source_offset;
          s.destination_offset = copy.destination_offset;
          s.row_bytes = copy.size_bytes;
          s.rows = 1;
          copy_rows_of(s, weights.regions[copy.from], slot);
        }
        std::vector<Segment> tasks;
        for (const auto& segment : part.segments.of(schedule.segments)) {
          if (!segment.contiguous()) append_tasks(segment, number(1, 200), tasks);
        }
        for (const auto& task : tasks) copy_rows_of(task, weights.regions[task.from], slot);
      }
      RC_ASSERT(slot == expected);
    }
  }
}

RC_GTEST_PROP(SourceLayout, PackedRowsAndChunksBringTheSameBytes, ()) {
  const auto model = random_model();
  auto layout = random_layout(model);
  for (auto& rank : layout.ranks) {  // chunks are sent from where they are
    rank.size_bytes = 0;
    for (auto& piece : rank.pieces) {
      piece.offset = rank.size_bytes;
      piece.pitch = piece.slice.columns * element_bytes(model.parameters[piece.parameter_index].info.dtype);
      rank.size_bytes += piece.slice.rows * piece.pitch;
    }
  }
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
      if (segment.contiguous_source()) copy_rows_of(segment, weights.regions[segment.from], packed);
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

RC_GTEST_PROP(SourceLayout, ADefectIsFound, ()) {
  const auto model = random_model();
  auto layout = random_layout(model);
  auto& rank = layout.ranks[number(0, layout.ranks.size() - 1)];
  RC_PRE(rank.pieces.size() > 1);
  const auto chosen = number(1, rank.pieces.size() - 1);
  auto& piece = rank.pieces[chosen];
  const auto defect = number(0, 7);
  RC_TAG(defect);
  switch (defect) {
    case 0: rank.pieces.erase(rank.pieces.begin() + static_cast<std::ptrdiff_t>(chosen)); break;
    case 1: ++piece.slice.row; break;
    case 2: --piece.slice.rows; break;
    case 3: ++piece.slice.columns; break;
    case 4: piece.offset = rank.pieces[chosen - 1].offset; break;
    case 5: --rank.size_bytes; break;
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
  switch (number(0, 3)) {
    case 0: segment.source_offset += number(1, 8); break;
    case 1: segment.from = (segment.from + 1) % (layout.ranks.size() + 1); break;
    case 2: segment.parameter_offset += 1; break;
    default: --segment.rows;
  }
  std::vector<Range> parts;
  for (const auto& part : rank.schedule.whole) parts.push_back(part.parameters);
  rank.schedule = make_schedule(std::move(segments), rank.shards.size(), parts, plan.pack_bytes);
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
  const auto two = [&](const Slice& first, const Slice& second) {
    SourceLayout layout = whole_layout(model);
    const auto width = layout.ranks[0].pieces[0].pitch;
    layout.ranks[0].pieces[0].slice = first;
    layout.ranks.push_back({{{0, second, 0, width}}, second.rows * width});
    return prove_layout(model, layout);
  };
  const auto shape = matrix_of(model.parameters[0].info);
  const auto half = shape.rows / 2;
  EXPECT_EQ(two({0, 0, half, shape.columns}, {half, 0, shape.rows - half, shape.columns}), "");
  EXPECT_THAT(two({0, 0, half, shape.columns}, {half, 0, half - 1, shape.columns}),
              HasSubstr("trainer ranks have of model.embed_tokens.weight: "));
  EXPECT_THAT(two({0, 0, half, shape.columns}, {half - 1, 0, half, shape.columns}),
              HasSubstr("some bytes are taken twice and others left out"));
  EXPECT_THAT(two({0, 0, half, shape.columns}, {half, 0, shape.rows, shape.columns}),
              HasSubstr("trainer rank 1: a piece of model.embed_tokens.weight is not in it"));
}

}  // namespace
}  // namespace weightcast
