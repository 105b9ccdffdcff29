#include "weightcast/core/deadline.hpp"

#include <charconv>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {

double parse_duration(std::string_view text) {
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  double factor = 0;
  if (unit.empty() || unit == "s") factor = 1;
  if (unit == "ms") factor = 1e-3;
  if (unit == "m") factor = 60;
  const double seconds = value * factor;
  if (status != std::errc() || !(seconds > 0 && seconds <= 86400)) {
    throw Error(ExitCode::usage, fmt::format("'{}' is not a duration", printable(text)),
                "write it like 500ms, 60s or 2m");
  }
  return seconds;
}

}  // namespace weightcast
