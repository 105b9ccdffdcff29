#include "weightcast/job/error_block.hpp"

#include <sstream>

#include "weightcast/core/bytes.hpp"

namespace weightcast {
namespace {

/// `text` with control bytes escaped and the lines after the first indented.
std::string lines_of(const std::string& text, std::string_view indent) {
  constexpr std::size_t line_limit = 2000;
  std::istringstream lines(text);
  std::string result;
  for (std::string line; std::getline(lines, line);) {
    if (!result.empty()) result += fmt::format("\n{}", indent);
    result += printable(line, line_limit);
  }
  return result;
}

std::string place_of(const ErrorOrigin& origin) {
  std::string place;
  const auto add = [&](const std::string& part) { place += (place.empty() ? "" : ", ") + part; };
  if (origin.rank >= 0) add(fmt::format("rank {}", origin.rank));
  if (!origin.host.empty()) add("host " + origin.host);
  if (!origin.role.empty()) add(origin.role);
  if (!origin.stage.empty()) add("stage " + origin.stage);
  return place;
}

}  // namespace

std::string error_block(const Error& error, int exit_status) {
  std::string block = fmt::format("weightcast: error: {}\n", lines_of(error.what(), "  "));
  block += fmt::format("  kind   {} (exit status {})\n", describe(error.code()), exit_status);
  const std::string place = place_of(error.origin());
  if (!place.empty()) block += fmt::format("  where  {}\n", lines_of(place, ""));
  if (!error.hint().empty()) block += fmt::format("  fix    {}\n", lines_of(error.hint(), "         "));
  return block;
}

}  // namespace weightcast
