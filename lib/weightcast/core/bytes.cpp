#include "weightcast/core/bytes.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "weightcast/core/error.hpp"

namespace weightcast {

std::uint64_t parse_size(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  std::optional<std::uint64_t> factor;
  if (unit.empty()) factor = 1;
  if (unit == "K") factor = kibibyte;
  if (unit == "M") factor = mebibyte;
  if (unit == "G") factor = gibibyte;
  if (unit == "T") factor = 1024 * gibibyte;
  const auto bytes = status == std::errc() && factor ? checked_multiply(value, *factor) : std::nullopt;
  if (!bytes)
    throw Error(ExitCode::usage, fmt::format("'{}' is not a size", printable(text)), "write it like 4096, 256M or 1G");
  return *bytes;
}

double parse_duration(std::string_view text) {
  constexpr double longest_s = 86400;
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  double factor = 0;
  if (unit.empty() || unit == "s") factor = 1;
  if (unit == "ms") factor = 1e-3;
  if (unit == "m") factor = 60;
  if (unit == "h") factor = 3600;
  const double seconds = value * factor;
  if (status != std::errc() || factor == 0 || std::isnan(seconds)) {
    throw Error(ExitCode::usage, fmt::format("'{}' is not a duration", printable(text)),
                "write it like 500ms, 60s, 2m or 1h");
  }
  if (!(seconds > 0 && seconds <= longest_s)) {
    throw Error(ExitCode::usage, fmt::format("'{}' is not a duration that it takes", printable(text)),
                "give more than 0, and at most a day (24h)");
  }
  return seconds;
}

double parse_share(std::string_view text) {
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  const double share = unit == "%" ? value / 100 : value;
  if (status != std::errc() || !(unit.empty() || unit == "%") || !(share > 0 && share <= 1)) {
    throw Error(ExitCode::usage, fmt::format("'{}' is not a share", printable(text)),
                "give more than 0 and at most 1, written like 0.4 or 2%");
  }
  return share;
}

std::string format_size(std::uint64_t bytes) {
  static constexpr std::array<const char*, 5> units = {"B", "kB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < units.size()) {
    value /= 1000;
    ++unit;
  }
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, decimals, units[unit]);
}

std::string printable(std::string_view text, std::size_t limit) {
  std::string result;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += c;
    }
  }
  if (text.size() > limit) result += "...";
  return result;
}

std::string list_some(std::span<const std::string> names, std::size_t limit) {
  std::string text;
  for (const auto& name : names.first(std::min(names.size(), limit)))
    text += (text.empty() ? "" : ", ") + printable(name);
  if (names.size() > limit) text += fmt::format(", {} more", names.size() - limit);
  return text;
}

std::string list_lines(std::span<const std::string> lines, std::size_t limit) {
  std::string text = fmt::format("{}", fmt::join(lines.first(std::min(lines.size(), limit)), "\n  "));
  if (lines.size() > limit) text += fmt::format("\n  and {} more", lines.size() - limit);
  return text;
}

}  // namespace weightcast
