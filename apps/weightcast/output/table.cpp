#include "output/table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "weightcast/core/text_width.hpp"

namespace weightcast {

Table::Table(std::vector<Column> columns, bool wide)
    : columns_(std::move(columns)), shown_(columns_.size(), true), wide_(wide) {
  const auto size = [&] {
    std::size_t taken = 0;
    for (std::size_t i = 0; i < columns_.size(); ++i) taken += shown_[i] ? columns_[i].width + 1 : 0;
    return taken - 1;
  };
  while (!wide && size() > usual_columns) {
    std::size_t least = columns_.size();
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      if (!shown_[i] || columns_[i].rank == 0) continue;
      if (least == columns_.size() || columns_[i].rank < columns_[least].rank) least = i;
    }
    if (least == columns_.size()) return;
    shown_[least] = false;
  }
}

std::string Table::head() const {
  std::vector<std::string> titles;
  for (const auto& column : columns_) titles.push_back(column.title);
  return row(titles);
}

std::string Table::row(const std::vector<std::string>& cells) const {
  std::string line;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    const auto& [title, width, rank, text] = columns_[i];
    if (!shown_[i]) continue;
    if (!line.empty()) line += ' ';
    line += text ? fmt::format("{:<{}}", wide_ ? cells.at(i) : shorten(cells.at(i), width), width)
                 : fmt::format("{:>{}}", cells.at(i), width);
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + '\n';
}

std::string Table::note() const {
  std::vector<std::string> left_out;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (!shown_[i]) left_out.push_back(columns_[i].title);
  }
  return left_out.empty() ? "" : fmt::format("; --wide adds {}", fmt::join(left_out, ", "));
}

std::string header_line(const std::string& text) {
  return fold("# " + text, "#   ") + '\n';
}

std::string milliseconds(double seconds) {
  if (std::isnan(seconds)) return "-";
  const double value = seconds * 1e3;
  return fmt::format("{:.{}f}", value, value < 1e4 ? 3 : value < 1e6 ? 1 : 0);
}

}  // namespace weightcast
