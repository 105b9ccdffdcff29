#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "weightcast/device/delta_run.hpp"

/// Random streams and what should become of them, by the words of delta/delta.md alone: nothing here asks DeltaRun or
/// DeltaBlock where a unit is.
namespace weightcast::delta_cases {

using Random = std::mt19937_64;

inline std::uint64_t number(Random& random, std::uint64_t from, std::uint64_t to) {
  return from + random() % (to - from + 1);
}

/// Where a unit is, in bytes, and what it is of.
struct Unit {
  std::uint64_t source = 0, slot = 0, offset = 0, parameter = 0;
};
using Block = std::vector<Unit>;

/// Runs one after the other, with what is said of them.
struct Stream {
  std::vector<DeltaRun> runs;
  std::vector<Block> blocks;
  std::uint64_t source_bytes = 0, slot_bytes = 0, parameters = 4;

  /// Everything even; `row_units` and `rows` at least 1. Gaps between rows and runs where `gaps` says so. The offset in
  /// the parameter is a multiple of `offset_bytes`.
  void add(Random& random, std::uint64_t row_units, std::uint64_t rows, bool gaps, std::uint64_t offset_bytes = 2) {
    const auto some = [&](std::uint64_t most) { return gaps ? 2 * number(random, 0, most) : 0; };
    const auto row_bytes = 2 * row_units;
    DeltaRun run{.first_block = blocks.size(),
                 .source = source_bytes + some(40),
                 .source_pitch = row_bytes + (random() % 2 == 0 ? some(70) : 0),
                 .slot = slot_bytes + some(40),
                 .slot_pitch = row_bytes + (random() % 2 == 0 ? some(70) : 0),
                 .offset = offset_bytes * number(random, 0, 1 << 20),
                 .parameter_pitch = row_bytes + (random() % 2 == 0 ? some(5000) : 0),
                 .row_units = row_units,
                 .rows = rows,
                 .parameter_index = random() % parameters};
    source_bytes = run.source + rows * run.source_pitch;
    slot_bytes = run.slot + rows * run.slot_pitch;
    const auto unit = [&](std::uint64_t row, std::uint64_t column) {
      return Unit{run.source + row * run.source_pitch + 2 * column, run.slot + row * run.slot_pitch + 2 * column,
                  run.offset + row * run.parameter_pitch + 2 * column, run.parameter_index};
    };
    for (std::uint64_t row = 0; row < rows;) {
      if (row_units > 4096) {
        for (std::uint64_t column = 0; column < row_units; ++column) {
          if (column % 4096 == 0) blocks.emplace_back();
          blocks.back().push_back(unit(row, column));
        }
        ++row;
        continue;
      }
      auto& block = blocks.emplace_back();
      for (; row < rows && block.size() + row_units <= 4096; ++row) {
        for (std::uint64_t column = 0; column < row_units; ++column) block.push_back(unit(row, column));
      }
    }
    runs.push_back(run);
  }
};

/// Of all shapes: one row, rows that words of marks do and do not fit, rows that blocks do and do not fit.
inline Stream random_stream(Random& random) {
  Stream stream;
  for (auto left = number(random, 1, 6); left > 0; --left) {
    const bool gaps = random() % 4 != 0;
    switch (random() % 5) {
      case 0: stream.add(random, number(random, 1, 20'000), 1, gaps); break;
      case 1: stream.add(random, number(random, 1, 100), number(random, 1, 200), gaps); break;
      case 2: stream.add(random, 32 * number(random, 1, 40), number(random, 1, 20), gaps); break;
      case 3: stream.add(random, number(random, 4090, 9'000), number(random, 1, 3), gaps); break;
      default: stream.add(random, number(random, 1, 3), number(random, 1, 3), gaps); break;
    }
  }
  return stream;
}

inline std::uint16_t unit_at(std::span<const std::byte> bytes, std::uint64_t offset) {
  std::uint16_t unit = 0;
  std::memcpy(&unit, bytes.data() + offset, sizeof(unit));
  return unit;
}
inline void set_unit(std::span<std::byte> bytes, std::uint64_t offset, std::uint16_t unit) {
  std::memcpy(bytes.data() + offset, &unit, sizeof(unit));
}

/// Another unit: some other bits, or the same with another sign, or a NaN whose payload differs in one bit.
inline std::uint16_t other_unit(Random& random, std::uint16_t unit) {
  switch (random() % 4) {
    case 0: return static_cast<std::uint16_t>(unit ^ 0x8000);
    case 1: return static_cast<std::uint16_t>(unit ^ 1u << random() % 16);
    case 2: return unit == 0x7fc0 ? 0x7fc1 : 0x7fc0;
    default: return static_cast<std::uint16_t>(unit + number(random, 1, 0xffff));
  }
}

/// Changes a share of the units, all over or in clusters: none, few, many or all.
inline void change(Random& random, std::span<std::byte> bytes) {
  const auto units = bytes.size() / 2;
  const double shares[] = {0, 0.001, 0.02, 0.1, 0.3, 0.7, 1}, share = shares[random() % std::size(shares)];
  const auto limit = static_cast<std::uint64_t>(share * 1'000'000);
  const bool clustered = random() % 3 == 0;
  bool within = false;
  for (std::uint64_t i = 0; i < units; ++i) {
    if (!clustered || i % 97 == 0) within = random() % 1'000'000 < limit;
    if (within) set_unit(bytes, 2 * i, other_unit(random, unit_at(bytes, 2 * i)));
  }
}

/// The bits of the units that differ, added to those that are there.
inline void mark(std::span<const std::byte> before, std::span<const std::byte> after,
                 std::vector<std::uint32_t>& marks) {
  for (std::uint64_t i = 0; i < before.size() / 2; ++i) {
    if (unit_at(before, 2 * i) != unit_at(after, 2 * i)) marks[i / 32] |= 1u << i % 32;
  }
}

struct Encoded {
  std::vector<std::uint64_t> starts;
  std::vector<DeltaEntry> entries;
};

inline Encoded encode(const Stream& stream, const std::vector<std::uint32_t>& marks,
                      std::span<const std::byte> source) {
  Encoded encoded;
  for (const auto& block : stream.blocks) {
    encoded.starts.push_back(encoded.entries.size());
    for (std::size_t i = 0; i < block.size(); ++i) {
      const auto unit = block[i].source / 2;
      if ((marks[unit / 32] >> unit % 32 & 1) != 0)
        encoded.entries.push_back({static_cast<std::uint16_t>(i), unit_at(source, block[i].source)});
    }
  }
  encoded.starts.push_back(encoded.entries.size());
  return encoded;
}

inline bool is_good(const Stream& stream, const Encoded& encoded, std::uint64_t capacity) {
  if (encoded.starts.front() != 0) return false;
  for (std::size_t b = 0; b < stream.blocks.size(); ++b) {
    const auto first = encoded.starts[b], end = encoded.starts[b + 1], units = stream.blocks[b].size();
    if (end < first || end > capacity || end - first > units) return false;
    for (auto i = first; i < end; ++i) {
      const auto index = encoded.entries[i].index;
      if (index >= units || (i > first && index <= encoded.entries[i - 1].index)) return false;
    }
  }
  return true;
}

}  // namespace weightcast::delta_cases
