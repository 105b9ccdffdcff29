#include "weightcast/core/digest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace weightcast {

std::string Digest::hex() const {
  return fmt::format("{:016x}{:016x}", first, second);
}

std::optional<Digest> Digest::from_hex(std::string_view text) noexcept {
  const bool digits =
      std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (text.size() != 32 || !digits) return std::nullopt;
  Digest digest;
  std::from_chars(text.data(), text.data() + 16, digest.first, 16);
  std::from_chars(text.data() + 16, text.data() + 32, digest.second, 16);
  return digest;
}

}  // namespace weightcast
