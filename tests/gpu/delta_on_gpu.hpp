#pragma once

#include <gtest/gtest.h>

#include "gpu/delta_cases.hpp"
#include "gpu/held.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/verify/digest.hpp"

/// Random streams as tests have them on a GPU.
namespace weightcast::delta_cases {

using Marks = std::vector<std::uint32_t>;
using Sums = std::vector<std::uint64_t>;

inline bool same(const std::vector<DeltaEntry>& a, const std::vector<DeltaEntry>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(DeltaEntry)) == 0);
}

class GpuDelta : public harness::GpuTest {};

/// A stream on the GPU, with what should become of it.
struct Case {
  Stream stream;
  std::vector<std::byte> before, after;  // of the source
  Marks marks;                           // those that were there and those that are made
  Encoded encoded;
  std::vector<std::byte> old_slot, new_slot;
  Sums change;
  harness::Held<DeltaRun> runs;
  gpu::DeltaRuns on_gpu;

  Case(Random& random, Stream made)
      : stream(std::move(made)),
        before(harness::random_bytes(stream.source_bytes, random())),
        after(before),
        marks(stream.source_bytes / 64 + 1),
        old_slot(harness::random_bytes(stream.slot_bytes, random())),
        change(2 * stream.parameters),
        runs(stream.runs),
        on_gpu{runs.data(), stream.runs.size(), stream.blocks.size()} {
    for (auto i = before.size() / 200; i > 0; --i) {
      const std::uint16_t special[] = {0, 0x8000, 0x7fc0, 0x7fc1, 0x7f80, 0xffff};
      set_unit(before, 2 * (random() % (before.size() / 2)), special[random() % std::size(special)]);
    }
    after = before;
    delta_cases::change(random, after);
  }
  /// Of marks as they are by then.
  void expect() {
    encoded = delta_cases::encode(stream, marks, after);
    for (const auto& block : stream.blocks) {
      for (const auto& unit : block) set_unit(old_slot, unit.slot, unit_at(before, unit.source));
    }
    new_slot = old_slot;
    for (const auto& block : stream.blocks) {
      for (const auto& unit : block) set_unit(new_slot, unit.slot, unit_at(after, unit.source));
    }
    for (const auto& run : stream.runs) {
      const auto of = [&](const std::vector<std::byte>& slot) {
        return digest_rows(slot.data() + run.slot, run.slot_pitch, 2 * run.row_units, run.rows, run.offset,
                           run.parameter_pitch);
      };
      change[2 * run.parameter_index] += of(new_slot).first - of(old_slot).first;
      change[2 * run.parameter_index + 1] += of(new_slot).second - of(old_slot).second;
    }
  }
};

inline Sums sum(const Sums& a, const Sums& b) {
  Sums sums = a;
  for (std::size_t i = 0; i < a.size(); ++i) sums[i] += b[i];
  return sums;
}

}  // namespace weightcast::delta_cases
