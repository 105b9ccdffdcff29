#include "weightcast/verify/digest_kernels.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "weightcast/device/digest_keys.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 mistakes its own intrinsics for uninitialised values (PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Each kernel walks the rows block by block: it sums key * word over the part of a row that lies in one block, and
// multiplies that sum by the block's factor once. The vector kernels keep 64-bit partial sums per vector lane, which is
// legal because all is addition modulo 2^64, and add the lanes up at the very end. Even and odd words of a vector are
// multiplied in turn, since the instruction multiplies the low halves of 64-bit lanes: a shift serves the odd ones.

namespace weightcast {
namespace {

using digest_keys::block_factor;
using digest_keys::block_words;
using digest_keys::key_table;

/// How many of `words` words, the first with index `word`, lie in the block of the first.
constexpr std::uint64_t words_in_block(std::uint64_t word, std::uint64_t words) noexcept {
  return std::min(words, block_words - word % block_words);
}

}  // namespace

Digest digest_words_portable(const WordRows& rows) noexcept {
  Digest total;
  for (std::uint64_t row = 0; row < rows.rows; ++row) {
    const std::byte* data = rows.data + row * rows.pitch_bytes;
    std::uint64_t word = rows.first_word + row * rows.parameter_pitch, left = rows.words;
    while (left > 0) {
      const std::uint64_t count = words_in_block(word, left), j = word % block_words;
      std::uint64_t first = 0, second = 0;
      for (std::uint64_t i = 0; i < count; ++i) {
        std::uint32_t value;
        std::memcpy(&value, data + 4 * i, 4);
        first += std::uint64_t{key_table.lane[0][j + i]} * value;
        second += std::uint64_t{key_table.lane[1][j + i]} * value;
      }
      total.first += first * block_factor(0, word / block_words);
      total.second += second * block_factor(1, word / block_words);
      data += 4 * count;
      word += count;
      left -= count;
    }
  }
  return total;
}

#if defined(__x86_64__)
namespace {

#define WEIGHTCAST_AVX2 __attribute__((target("avx2")))
#define WEIGHTCAST_AVX512 __attribute__((target("avx512f,avx512dq")))

/// a + value * factor per 64-bit lane, low 64 bits.
WEIGHTCAST_AVX2 inline __m256i add_product(__m256i a, __m256i value, std::uint64_t factor) noexcept {
  const __m256i low = _mm256_set1_epi64x(static_cast<long long>(factor)), high = _mm256_srli_epi64(low, 32);
  const __m256i cross =
      _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(value, 32), low), _mm256_mul_epu32(value, high));
  return _mm256_add_epi64(a, _mm256_add_epi64(_mm256_mul_epu32(value, low), _mm256_slli_epi64(cross, 32)));
}

/// sum + the products of the eight words of `data` with the keys at `keys`.
WEIGHTCAST_AVX2 inline __m256i add_words(__m256i sum, __m256i data, __m256i odd, const std::uint32_t* keys) noexcept {
  const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys));
  sum = _mm256_add_epi64(sum, _mm256_mul_epu32(data, key));
  return _mm256_add_epi64(sum, _mm256_mul_epu32(odd, _mm256_srli_epi64(key, 32)));
}

template <typename Vector>
std::uint64_t add_lanes(const Vector& value) noexcept {
  std::array<std::uint64_t, sizeof(Vector) / 8> lanes;
  std::memcpy(lanes.data(), &value, sizeof value);
  return std::accumulate(lanes.begin(), lanes.end(), std::uint64_t{0});
}

WEIGHTCAST_AVX512 inline __m512i add_words(__m512i sum, __m512i data, __m512i odd, const std::uint32_t* keys) noexcept {
  const __m512i key = _mm512_loadu_si512(keys);
  sum = _mm512_add_epi64(sum, _mm512_mul_epu32(data, key));
  return _mm512_add_epi64(sum, _mm512_mul_epu32(odd, _mm512_srli_epi64(key, 32)));
}

}  // namespace

WEIGHTCAST_AVX2 Digest digest_words_avx2(const WordRows& rows) noexcept {
  __m256i first = _mm256_setzero_si256(), second = first;
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (std::uint64_t row = 0; row < rows.rows; ++row) {
    const std::byte* data = rows.data + row * rows.pitch_bytes;
    std::uint64_t word = rows.first_word + row * rows.parameter_pitch, left = rows.words;
    while (left > 0) {
      const std::uint64_t count = words_in_block(word, left), j = word % block_words;
      __m256i sum0 = _mm256_setzero_si256(), sum1 = sum0;
      std::uint64_t i = 0;
      for (; i + 8 <= count; i += 8) {
        const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 4 * i));
        const __m256i odd = _mm256_srli_epi64(value, 32);
        sum0 = add_words(sum0, value, odd, &key_table.lane[0][j + i]);
        sum1 = add_words(sum1, value, odd, &key_table.lane[1][j + i]);
      }
      if (i < count) {
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count - i)), lane);
        const __m256i value = _mm256_maskload_epi32(reinterpret_cast<const int*>(data + 4 * i), mask);
        const __m256i odd = _mm256_srli_epi64(value, 32);
        sum0 = add_words(sum0, value, odd, &key_table.lane[0][j + i]);
        sum1 = add_words(sum1, value, odd, &key_table.lane[1][j + i]);
      }
      first = add_product(first, sum0, block_factor(0, word / block_words));
      second = add_product(second, sum1, block_factor(1, word / block_words));
      data += 4 * count;
      word += count;
      left -= count;
    }
  }
  return {add_lanes(first), add_lanes(second)};
}

WEIGHTCAST_AVX512 Digest digest_words_avx512(const WordRows& rows) noexcept {
  __m512i first = _mm512_setzero_si512(), second = first;
  for (std::uint64_t row = 0; row < rows.rows; ++row) {
    const std::byte* data = rows.data + row * rows.pitch_bytes;
    std::uint64_t word = rows.first_word + row * rows.parameter_pitch, left = rows.words;
    while (left > 0) {
      const std::uint64_t count = words_in_block(word, left), j = word % block_words;
      __m512i sum0 = _mm512_setzero_si512(), sum1 = sum0;
      std::uint64_t i = 0;
      for (; i + 16 <= count; i += 16) {
        const __m512i value = _mm512_loadu_si512(data + 4 * i);
        const __m512i odd = _mm512_srli_epi64(value, 32);
        sum0 = add_words(sum0, value, odd, &key_table.lane[0][j + i]);
        sum1 = add_words(sum1, value, odd, &key_table.lane[1][j + i]);
      }
      if (i < count) {
        const __mmask16 mask = static_cast<__mmask16>((1U << (count - i)) - 1U);
        const __m512i value = _mm512_maskz_loadu_epi32(mask, data + 4 * i);
        const __m512i odd = _mm512_srli_epi64(value, 32);
        sum0 = add_words(sum0, value, odd, &key_table.lane[0][j + i]);
        sum1 = add_words(sum1, value, odd, &key_table.lane[1][j + i]);
      }
      const auto factor = [&](std::uint64_t l) { return static_cast<long long>(block_factor(l, word / block_words)); };
      first = _mm512_add_epi64(first, _mm512_mullo_epi64(sum0, _mm512_set1_epi64(factor(0))));
      second = _mm512_add_epi64(second, _mm512_mullo_epi64(sum1, _mm512_set1_epi64(factor(1))));
      data += 4 * count;
      word += count;
      left -= count;
    }
  }
  return {add_lanes(first), add_lanes(second)};
}
#endif

std::span<const NamedDigestKernel> digest_kernels() noexcept {
#if defined(__x86_64__)
  static const std::array kernels = {
      NamedDigestKernel{"portable", true, digest_words_portable},
      NamedDigestKernel{"avx2", __builtin_cpu_supports("avx2") != 0, digest_words_avx2},
      NamedDigestKernel{"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"),
                        digest_words_avx512}};
#else
  static const std::array kernels = {NamedDigestKernel{"portable", true, digest_words_portable}};
#endif
  return kernels;
}

}  // namespace weightcast
