#include "weightcast/delta/host_delta.hpp"

#include <algorithm>
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

/// Bits [first, first + count) of the marks, at most 32.
std::uint32_t bits_at(const std::uint32_t* marks, std::uint64_t first, std::uint64_t count) noexcept {
  const auto word = first / word_units, shift = first % word_units;
  std::uint64_t bits = marks[word] >> shift;
  if (shift + count > word_units) bits |= std::uint64_t{marks[word + 1]} << (word_units - shift);
  return static_cast<std::uint32_t>(bits & ((std::uint64_t{1} << count) - 1));
}

/// Calls take(index of the first, bits) for the units of a block, up to 32 at a time.
template <typename Take>
void for_each_word(const DeltaRun& run, const DeltaBlock& block, const std::uint32_t* marks, const Take& take) {
  std::uint64_t index = 0;
  for (std::uint64_t row = 0; row < block.rows; ++row) {
    const auto first = (run.source + block.place(row * block.row_units, run.source_pitch)) / delta_unit_bytes;
    for (std::uint64_t i = 0; i < block.row_units; i += word_units) {
      const auto count = std::min(word_units, block.row_units - i);
      take(index + i, bits_at(marks, first + i, count));
    }
    index += block.row_units;
  }
}

/// Sums up the digests of changes to one parameter.
class ChangeDigest {
 public:
  void add(std::uint64_t offset, std::uint16_t before, std::uint16_t after) noexcept {
    using namespace digest_keys;
    const std::uint64_t word = offset / 4, block = word / block_words, j = word % block_words;
    if (block != block_) {
      settle();
      block_ = block;
    }
    const auto difference = (std::uint64_t{after} - before) << (8 * (offset % 4));
    inner_.first += key_table.lane[0][j] * difference;
    inner_.second += key_table.lane[1][j] * difference;
  }
  Digest take() noexcept {
    settle();
    return std::exchange(total_, {});
  }

 private:
  void settle() noexcept {
    if (inner_ == Digest{}) return;
    total_.first += digest_keys::block_factor(0, block_) * inner_.first;
    total_.second += digest_keys::block_factor(1, block_) * inner_.second;
    inner_ = {};
  }
  std::uint64_t block_ = 0;
  Digest inner_, total_;  // inner: of that digest block, without its factor
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
                [&](std::uint64_t, std::uint32_t bits) { count += static_cast<unsigned>(std::popcount(bits)); });
  return count;
}

void encode_block(const DeltaRun& run, std::uint64_t block, const std::uint32_t* marks, const std::byte* source,
                  DeltaEntry* entries) noexcept {
  const auto where = block_of(run, block);
  const auto* const from = source + run.source;
  for_each_word(run, where, marks, [&](std::uint64_t first, std::uint32_t bits) {
    if (bits == 0) return;
    const auto* const row = from + where.place(first, run.source_pitch);  // one: words do not go on in the next
    for (; bits != 0; bits &= bits - 1) {
      const auto i = static_cast<unsigned>(std::countr_zero(bits));
      *entries++ = {static_cast<std::uint16_t>(first + i), load_unit(row + delta_unit_bytes * i)};
    }
  });
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

void apply_blocks(const StreamView& stream, std::uint64_t first, std::uint64_t last, bool swap, std::byte* slot,
                  FunctionRef<void(std::uint64_t parameter_index, const Digest&)> add) noexcept {
  if (first >= last) return;
  ChangeDigest digest;
  const auto* run = &run_of(stream.runs.data(), stream.runs.size(), first);
  for (auto b = first; b < last; ++b) {
    if (b >= run->first_block + run->block_count()) {
      add(run->parameter_index, digest.take());
      ++run;
    }
    const auto block = block_of(*run, b);
    for (auto i = stream.starts[b]; i < stream.starts[b + 1]; ++i) {
      auto& entry = stream.entries[i];
      auto* const to = slot + run->slot + block.place(entry.index, run->slot_pitch);
      const auto before = load_unit(to), after = entry.value;
      std::memcpy(to, &after, sizeof(after));
      if (swap) entry.value = before;
      digest.add(run->offset + block.place(entry.index, run->parameter_pitch), before, after);
    }
  }
  add(run->parameter_index, digest.take());
}

}  // namespace weightcast
