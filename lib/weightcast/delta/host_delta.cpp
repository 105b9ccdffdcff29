#include "weightcast/delta/host_delta.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <utility>

#include "weightcast/device/digest_keys.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 mistakes its own intrinsics for uninitialised values (PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace weightcast {
namespace {

constexpr std::uint64_t word_units = 32;
constexpr std::uint64_t word_bytes = word_units * delta_unit_bytes;

std::uint16_t load_unit(const std::byte* from) noexcept {
  std::uint16_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

/// Which of `count` units differ, the first as bit 0.
std::uint32_t differing(const std::byte* before, const std::byte* after, std::uint64_t count) noexcept {
  std::uint32_t bits = 0;
  for (std::uint64_t i = 0; i < count; ++i)
    bits |= std::uint32_t{load_unit(before + 2 * i) != load_unit(after + 2 * i)} << i;
  return bits;
}

/// Sets marks for whole words.
using MarkWords = void (*)(const std::byte* before, const std::byte* after, std::uint64_t words, std::uint32_t* marks);

void mark_words_portable(const std::byte* before, const std::byte* after, std::uint64_t words, std::uint32_t* marks) {
  for (std::uint64_t w = 0; w < words; ++w, before += word_bytes, after += word_bytes) {
    if (std::memcmp(before, after, word_bytes) != 0) marks[w] |= differing(before, after, word_units);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void mark_words_avx2(const std::byte* before, const std::byte* after,
                                                     std::uint64_t words, std::uint32_t* marks) {
  const auto at = [](const std::byte* from) { return reinterpret_cast<const __m256i*>(from); };
  for (std::uint64_t w = 0; w < words; ++w, before += word_bytes, after += word_bytes) {
    const auto low = _mm256_cmpeq_epi16(_mm256_loadu_si256(at(before)), _mm256_loadu_si256(at(after))),
               high = _mm256_cmpeq_epi16(_mm256_loadu_si256(at(before + 32)), _mm256_loadu_si256(at(after + 32)));
    const auto equal = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);
    const auto bits = ~static_cast<std::uint32_t>(_mm256_movemask_epi8(equal));
    if (bits != 0) marks[w] |= bits;
  }
}

__attribute__((target("avx512f,avx512bw"))) void mark_words_avx512(const std::byte* before, const std::byte* after,
                                                                   std::uint64_t words, std::uint32_t* marks) {
  for (std::uint64_t w = 0; w < words; ++w, before += word_bytes, after += word_bytes) {
    const auto bits = _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(before), _mm512_loadu_si512(after));
    if (bits != 0) marks[w] |= bits;
  }
}
#endif

MarkWords best_mark_words() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return mark_words_avx512;
  if (__builtin_cpu_supports("avx2")) return mark_words_avx2;
#endif
  return mark_words_portable;
}

/// Bits [first, first + count) of the marks, at most 64.
std::uint64_t bits_at(const std::uint32_t* marks, std::uint64_t first, std::uint64_t count) noexcept {
  const auto* const words = marks + first / word_units;
  const auto shift = first % word_units;
  std::uint64_t bits;
  std::memcpy(&bits, words, sizeof(bits));
  if (shift != 0) bits = bits >> shift | static_cast<std::uint64_t>(words[2]) << (64 - shift);
  return count == 64 ? bits : bits & ((std::uint64_t{1} << count) - 1);
}

/// Calls take(index of the first, bits) for the units of a block, up to 64 at a time, none of which go on in another
/// row.
template <typename Take>
void for_each_word(const DeltaRun& run, const DeltaBlock& block, const std::uint32_t* marks, const Take& take) {
  std::uint64_t index = 0;
  for (std::uint64_t row = 0; row < block.rows; ++row) {
    const auto first = (run.source + block.place(row * block.row_units, run.source_pitch)) / delta_unit_bytes;
    for (std::uint64_t i = 0; i < block.row_units; i += 64) {
      const auto bits = bits_at(marks, first + i, std::min<std::uint64_t>(64, block.row_units - i));
      take(index + i, bits);
    }
    index += block.row_units;
  }
}

/// Digests of changes within a run of bytes of a parameter, at most a block of them. No branch depends on where they
/// are: where changes are many, that is half of the time.
class ChangeDigests {
 public:
  /// The run begins there, at an even offset.
  ChangeDigests(std::uint64_t offset, std::uint64_t units) noexcept : first_(offset / 2 % block_half_words) {
    const auto first = offset / 2 / block_half_words, last = (offset / 2 + units - 1) / block_half_words;
    for (auto block = first; block <= last; ++block) {
      factors_[block - first] = {digest_keys::block_factor(0, block), digest_keys::block_factor(1, block)};
    }
  }
  Digest of(std::uint64_t index, std::uint16_t before, std::uint16_t after) const noexcept {
    const auto at = first_ + index, j = at % block_half_words / 2;
    const auto difference = (std::uint64_t{after} - before) << (16 * (at % 2));
    const auto& factor = factors_[at / block_half_words];
    return {factor.first * (digest_keys::key_table.lane[0][j] * difference),
            factor.second * (digest_keys::key_table.lane[1][j] * difference)};
  }

 private:
  static constexpr std::uint64_t block_half_words = 2 * digest_keys::block_words;
  std::uint64_t first_;                                            // half-word of the first digest block
  Digest factors_[delta_block_units / block_half_words + 1] = {};  // of the digest blocks that the run meets
};

}  // namespace

void mark_changes(const std::byte* before, const std::byte* after, std::uint64_t first, std::uint64_t count,
                  std::uint32_t* marks) noexcept {
  static const auto mark_words = best_mark_words();
  // Words at the edges may be somebody else's, too.
  const auto edge = [&](std::uint64_t units) {
    const auto bits = differing(before, after, units);
    if (bits != 0) std::atomic_ref(marks[first / word_units]).fetch_or(bits << (first % word_units));
    before += units * delta_unit_bytes;
    after += units * delta_unit_bytes;
    first += units;
    count -= units;
  };
  if (const auto head = -first % word_units; head != 0) edge(std::min(head, count));
  const auto words = count / word_units;
  if (words != 0) {
    mark_words(before, after, words, marks + first / word_units);
    before += words * word_bytes;
    after += words * word_bytes;
    first += words * word_units;
    count -= words * word_units;
  }
  if (count != 0) edge(count);
}

std::uint64_t count_marked(const DeltaRun& run, std::uint64_t block, const std::uint32_t* marks) noexcept {
  std::uint64_t count = 0;
  for_each_word(run, block_of(run, block), marks,
                [&](std::uint64_t, std::uint64_t bits) { count += static_cast<unsigned>(std::popcount(bits)); });
  return count;
}

void encode_block(const DeltaRun& run, std::uint64_t block, const std::uint32_t* marks, const std::byte* source,
                  DeltaEntry* entries) noexcept {
  const auto where = block_of(run, block);
  const auto* const from = source + run.source;
  // First which, and their bytes are let come, then what. Most words have a mark or none, and which is chance: so the
  // first is written as if it were there.
  std::array<std::uint16_t, delta_block_units + 1> indices;
  std::size_t count = 0;
  for_each_word(run, where, marks, [&](std::uint64_t first, std::uint64_t bits) {
    const auto* const row = from + where.place(first, run.source_pitch);
    do {
      const auto i = static_cast<unsigned>(std::countr_zero(bits | std::uint64_t{bits == 0}));
      indices[count] = static_cast<std::uint16_t>(first + i);
      __builtin_prefetch(row + delta_unit_bytes * i);
      count += bits != 0;
      bits &= bits - 1;
    } while (bits != 0);
  });
  const bool one_run = where.rows == 1 || run.source_pitch == where.row_units * delta_unit_bytes;
  const auto* const begin = from + where.place(0, run.source_pitch);
  for (std::size_t i = 0; i < count; ++i) {
    const auto* const unit =
        one_run ? begin + delta_unit_bytes * indices[i] : from + where.place(indices[i], run.source_pitch);
    entries[i] = {indices[i], load_unit(unit)};
  }
}

bool good_blocks(const StreamView& stream, std::uint64_t first, std::uint64_t last) noexcept {
  if (first == 0 && stream.starts[0] != 0) return false;
  for (auto b = first; b < last; ++b) {
    const auto begin = stream.starts[b], end = stream.starts[b + 1];
    const auto units = block_of(run_of(stream.runs.data(), stream.runs.size(), b), b).units();
    if (begin > end || end > stream.capacity || end - begin > units) return false;
    std::uint64_t next = 0;  // the least index that may come
    for (auto i = begin; i < end; ++i) {
      const std::uint64_t index = stream.entries[i].index;
      if (index < next || index >= units) return false;
      next = index + 1;
    }
  }
  return true;
}

namespace {

/// The entries of the next block, whose bytes are let come one by one: without, each waits for its own.
class Ahead {
 public:
  Ahead(const StreamView& stream, const DeltaRun& run, std::uint64_t b, const std::byte* slot) noexcept {
    const auto block = block_of(run, b);
    if (block.rows > 1 && run.slot_pitch != run.row_units * delta_unit_bytes) return;  // they are no run of bytes
    to_ = slot + run.slot + block.place(0, run.slot_pitch);
    next_ = stream.entries + stream.starts[b];
    end_ = stream.entries + stream.starts[b + 1];
  }
  Ahead() = default;
  void fetch() noexcept {
    if (next_ != end_) __builtin_prefetch(to_ + delta_unit_bytes * next_++->index);
  }

 private:
  const std::byte* to_ = nullptr;
  const DeltaEntry *next_ = nullptr, *end_ = nullptr;
};

/// What a block's entries do to a slot, and to the digest of its parameter.
template <bool swap>
Digest apply_block(const DeltaRun& run, const DeltaBlock& block, std::span<DeltaEntry> entries, std::byte* slot,
                   Ahead ahead) noexcept {
  Digest sum;
  for (auto next = entries.begin(); next != entries.end();) {  // a row at a time
    const auto row_first = next->index - next->index % block.row_units;
    const auto end = block.rows == 1
                         ? entries.end()
                         : std::lower_bound(next, entries.end(), row_first + block.row_units,
                                            [](const DeltaEntry& e, std::uint64_t i) { return e.index < i; });
    auto* const to = slot + run.slot + block.place(row_first, run.slot_pitch);
    const ChangeDigests digests(run.offset + block.place(row_first, run.parameter_pitch), block.row_units);
    for (; next != end; ++next) {
      ahead.fetch();
      const auto index = next->index - row_first;
      auto* const unit = to + delta_unit_bytes * index;
      const auto before = load_unit(unit), after = next->value;
      std::memcpy(unit, &after, sizeof(after));
      if constexpr (swap) next->value = before;
      sum += digests.of(index, before, after);
    }
  }
  return sum;
}

}  // namespace

void apply_blocks(const StreamView& stream, std::uint64_t first, std::uint64_t last, bool swap, std::byte* slot,
                  FunctionRef<void(std::uint64_t parameter_index, const Digest&)> add) noexcept {
  if (first >= last) return;
  Digest sum;
  const auto* run = &run_of(stream.runs.data(), stream.runs.size(), first);
  for (auto b = first; b < last; ++b) {
    const auto* const next = b + 1 < run->first_block + run->block_count() ? run : run + 1;
    const std::span entries(stream.entries + stream.starts[b], stream.entries + stream.starts[b + 1]);
    const auto ahead = b + 1 < last ? Ahead(stream, *next, b + 1, slot) : Ahead();
    sum += swap ? apply_block<true>(*run, block_of(*run, b), entries, slot, ahead)
                : apply_block<false>(*run, block_of(*run, b), entries, slot, ahead);
    if (next == run && b + 1 < last) continue;
    add(run->parameter_index, sum);
    sum = {};
    run = next;
  }
}

}  // namespace weightcast
