#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace weightcast {

/// A checksum of weights as a value: 128 bits as two sums modulo 2^64. The digest of nothing is zero; addition is the
/// digest of the union of disjoint parts. How it is computed is verify's matter (verify/digest.md).
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

}  // namespace weightcast
