#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "weightcast/verify/digest.hpp"

/// The inner loops of the digest, one per instruction set. Internal to verify; its tests hold them against each other.
namespace weightcast {

/// Rows of whole 32-bit words of a parameter. `data` and `pitch_bytes` (memory) need no alignment.
struct WordRows {
  const std::byte* data = nullptr;
  std::uint64_t pitch_bytes = 0;      ///< from row to row in memory
  std::uint64_t rows = 0, words = 0;  ///< number of rows, words in each
  std::uint64_t first_word = 0;       ///< index in the parameter of the first word of row 0
  std::uint64_t parameter_pitch = 0;  ///< words from row to row in the parameter
};

using DigestKernel = Digest (*)(const WordRows& rows) noexcept;

Digest digest_words_portable(const WordRows& rows) noexcept;
#if defined(__x86_64__)
/// Only on a processor that has the instructions.
Digest digest_words_avx2(const WordRows& rows) noexcept;
Digest digest_words_avx512(const WordRows& rows) noexcept;
#endif

struct NamedDigestKernel {
  const char* name;
  bool usable;  ///< this processor has the instructions
  DigestKernel run;
};

/// All kernels of this build, the slowest first.
std::span<const NamedDigestKernel> digest_kernels() noexcept;

/// digest_rows() by a given kernel.
Digest digest_rows_with(DigestKernel kernel, const std::byte* data, std::uint64_t pitch, std::uint64_t row_bytes,
                        std::uint64_t rows, std::uint64_t offset, std::uint64_t parameter_pitch) noexcept;

}  // namespace weightcast
