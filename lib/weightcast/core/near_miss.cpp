#include "weightcast/core/near_miss.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <vector>

namespace weightcast {
namespace {

std::string normal(std::string_view text) {
  std::string result;
  for (const char c : text) result += c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

/// Slips between two words: the optimal string alignment distance.
std::size_t slips(const std::string& a, const std::string& b) {
  std::vector<std::vector<std::size_t>> table(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      auto& least = table[i][j];
      if (i == 0 || j == 0) {
        least = i + j;
        continue;
      }
      least =
          std::min({table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1] ? 1 : 0)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        least = std::min(least, table[i - 2][j - 2] + 1);
    }
  }
  return table[a.size()][b.size()];
}

}  // namespace

std::optional<std::string> near_miss(std::string_view word, const std::set<std::string>& names) {
  constexpr std::size_t shortest = 3, longest = 64;  // no name is longer
  const std::string wrong = normal(word);
  if (wrong.size() > longest) return std::nullopt;
  std::optional<std::string> nearest;
  std::size_t least = SIZE_MAX;
  for (const auto& name : names) {
    const std::size_t allowed = name.size() < shortest ? 0 : name.size() < 6 ? 1 : 2;
    auto distance = slips(wrong, normal(name));
    if (distance > allowed) {
      if (wrong.size() < shortest || !normal(name).starts_with(wrong)) continue;
      distance = allowed + 1;  // an abbreviation
    }
    if (distance >= least) continue;
    least = distance;
    nearest = name;
  }
  return nearest;
}

std::string did_you_mean(std::string_view word, const std::set<std::string>& names, std::string_view prefix,
                         const std::string& hint) {
  const auto name = near_miss(word, names);
  return name ? fmt::format("did you mean {}{}? {}", prefix, *name, hint) : hint;
}

}  // namespace weightcast
