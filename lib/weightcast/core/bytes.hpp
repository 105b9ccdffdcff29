#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// Sizes: arithmetic that cannot overflow silently. And how sizes, times and names are written and read.
namespace weightcast {

inline constexpr std::uint64_t kibibyte = 1024, mebibyte = 1024 * kibibyte, gibibyte = 1024 * mebibyte;

/// a*b and a+b, or nothing when the result does not fit.
constexpr std::optional<std::uint64_t> checked_multiply(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}
constexpr std::optional<std::uint64_t> checked_add(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

/// `value` rounded up to a multiple of `unit` (> 0). The caller vouches that the result fits.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) noexcept {
  return (value + unit - 1) / unit * unit;
}

/// Reads "4096", "256K", "256M", "1G", "2T" (powers of 1024). Error(usage) on anything else or on overflow.
std::uint64_t parse_size(std::string_view text);

/// Seconds from "60s", "500ms", "2m", "1h", "1.5" (seconds). Error(usage) on anything else, zero or less, or over a
/// day.
double parse_duration(std::string_view text);

/// A share from "0.4", "2%", "0.1%": more than 0, at most 1. Error(usage) on anything else.
double parse_share(std::string_view text);

/// "512 B", "2.47 GB", "16.1 GB": decimal units, three significant digits.
std::string format_size(std::uint64_t bytes);

/// `text` made safe for a terminal and an error message: control bytes as \xNN, cut at `limit` characters with "...".
std::string printable(std::string_view text, std::size_t limit = 200);

/// "a, b, c", made printable; of more than `limit` how many more: "a, b, 3 more".
std::string list_some(std::span<const std::string> names, std::size_t limit = 5);
/// Lines of a message, the second and later ones indented by two; behind `limit` of them "and 3 more".
std::string list_lines(std::span<const std::string> lines, std::size_t limit = 20);

}  // namespace weightcast
