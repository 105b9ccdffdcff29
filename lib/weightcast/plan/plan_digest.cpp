#include <fmt/format.h>
#include <xxhash.h>

#include <bit>
#include <memory>

#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {
namespace {

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
  void add(bool value) { integers(value ? 1 : 0); }
  void add(const Shard& s) {
    integers(s.parameter_index, s.parameter_offset, s.parameter_pitch, s.destination_offset, s.destination_pitch,
             s.row_bytes, s.rows);
  }
  void add(const Segment& s) {
    add(static_cast<const Shard&>(s));
    integers(s.from, s.source_offset, s.source_pitch);
  }
  void add(const Piece& p) {
    integers(p.parameter_index, p.slice.row, p.slice.column, p.slice.rows, p.slice.columns, p.offset, p.pitch);
  }
  void add(const SourceRegion& region) {
    list(region.pieces);
    integers(region.size_bytes);
  }
  void add(const Copy& copy) { integers(copy.from, copy.source_offset, copy.destination_offset, copy.size_bytes); }
  void add(const PackedRows& rows) { integers(rows.segment_index, rows.first_row, rows.row_count, rows.pack_offset); }
  void add(const Range& range) { integers(range.first, range.count); }
  void add(const Supply& supply) {
    integers(supply.from);
    add(supply.segments);
    add(supply.parts);
  }
  void add(const Part& part) {
    integers(part.from);
    for (const auto& range : {part.parameters, part.segments, part.copies, part.pulled, part.pushed, part.pack_steps})
      add(range);
  }
  void add(const Schedule& schedule) {
    list(schedule.segments);
    list(schedule.supplies);
    list(schedule.copies);
    list(schedule.halves);
    list(schedule.packed);
    list(schedule.pack_steps);
    list(schedule.whole);
    list(schedule.single);
    list(schedule.first_single);
  }
  void add(const ByteRange& range) { integers(range.offset, range.size_bytes); }
  void add(const ParameterRule& rule) {
    text(rule.info.name);
    text(weightcast::name(rule.info.dtype));
    list(rule.info.shape);
    text(rule.engine_tensor);
    text(weightcast::name(rule.kind));
    integers(rule.part, rule.units, rule.row, rule.rows, rule.expert, rule.experts, rule.ep);
  }
  void add(const EngineTensor& tensor) {
    text(tensor.name);
    text(weightcast::name(tensor.dtype));
    integers(tensor.shape.rows, tensor.shape.columns, tensor.experts, tensor.offset, tensor.size_bytes);
    list(tensor.parameters);
  }
  void add(const RankPlan& rank) {
    list(rank.shards);
    list(rank.copies);
    add(rank.schedule);
    add(rank.relay);
    list(rank.padding);
    integers(rank.received_bytes);
  }

  std::unique_ptr<XXH3_state_t, Free> state_;
};

}  // namespace

std::string digest_of(const TransferPlan& plan) {
  PlanHasher hasher;
  hasher.text("weightcast.plan/5");
  hasher.text(name(plan.model.config.family));
  hasher.integers(plan.tp, plan.dp, plan.slot_bytes, plan.message_bytes, plan.pack_bytes);
  hasher.integers(copy_block_bytes, digest_block_bytes, warp_run_bytes);
  hasher.list(plan.model.parameters);
  hasher.list(plan.sources.ranks);
  hasher.list(plan.engine_tensors);
  hasher.list(plan.ranks);
  return hasher.hex();
}

}  // namespace weightcast
