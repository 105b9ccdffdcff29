#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

/// Summaries of timings. All return NaN ("unknown", null in a report) for no values at all.
namespace weightcast {

inline constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

/// The middle value, or the mean of the two middle ones.
inline double median(std::vector<double> values) {
  if (values.empty()) return unknown;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// The smallest value that `percent` of all values do not exceed (nearest rank), 0 < percent <= 100.
inline double percentile(std::vector<double> values, double percent) {
  if (values.empty()) return unknown;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(percent / 100 * static_cast<double>(values.size())));
  return values[std::clamp<std::size_t>(rank, 1, values.size()) - 1];
}
inline double p99(std::vector<double> values) {
  return percentile(std::move(values), 99);
}

inline double min(const std::vector<double>& values) {
  return values.empty() ? unknown : *std::min_element(values.begin(), values.end());
}
inline double max(const std::vector<double>& values) {
  return values.empty() ? unknown : *std::max_element(values.begin(), values.end());
}

}  // namespace weightcast
