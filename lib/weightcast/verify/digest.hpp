#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/plan/transfer_plan.hpp"

/// The shard-invariant checksum: digests of the parts of a parameter add up to the digest of the whole, whatever the
/// parts. Definition and test vectors: digest.md. The same on CPU and GPU.
namespace weightcast {

/// 128 bits as two sums modulo 2^64. The digest of nothing is zero; addition is the digest of the union of disjoint
/// parts.
struct Digest {
  std::uint64_t first = 0, second = 0;
  bool operator==(const Digest&) const = default;
  Digest& operator+=(const Digest& other) noexcept {
    first += other.first;
    second += other.second;
    return *this;
  }
  friend Digest operator+(Digest a, const Digest& b) noexcept { return a += b; }
  /// 32 hexadecimal digits, `first` before `second`.
  std::string hex() const;
  static std::optional<Digest> from_hex(std::string_view text) noexcept;
};

/// Digest of `data`, the bytes of a parameter from byte `offset` of it on. Vectorised; allocates nothing.
Digest digest_bytes(std::span<const std::byte> data, std::uint64_t offset) noexcept;

/// Digest of rows [first_row, first_row + rows) of a shard held at `data` (the byte of row 0), `pitch` bytes apart.
/// `offset` is the byte offset of row 0 in the parameter and `parameter_pitch` the bytes from row to row there.
Digest digest_rows(const std::byte* data, std::uint64_t pitch, std::uint64_t row_bytes, std::uint64_t first_row,
                   std::uint64_t rows, std::uint64_t offset, std::uint64_t parameter_pitch) noexcept;

/// One digest for a set of named tensors: independent of their order in memory, sensitive to names, dtypes and shapes.
/// `digests[i]` belongs to `tensors[i]`.
Digest digest_of_set(std::span<const TensorInfo> tensors, std::span<const Digest> digests);
Digest digest_of_model(const Model& model, std::span<const Digest> digests);

}  // namespace weightcast
