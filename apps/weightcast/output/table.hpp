#pragma once

#include <cstddef>
#include <string>
#include <vector>

/// Tables that are printed row by row and fit 80 columns.
namespace weightcast {

struct Column {
  std::string title;
  std::size_t width;  ///< of cells; text that is longer is shortened, unless the table is wide
  /// 0: always there. Others are left out where a row would be longer than 80 columns, the lowest first.
  int rank = 0;
  bool text = false;  ///< aligned to the left
};

class Table {
 public:
  /// `wide`: all columns, whatever that takes.
  Table(std::vector<Column> columns, bool wide);

  /// The titles, and a row of a cell for each column given, also those that are left out. With a newline.
  std::string head() const;
  std::string row(const std::vector<std::string>& cells) const;
  /// "; --wide adds vote, commit", for a header line; empty where nothing is left out.
  std::string note() const;

 private:
  std::vector<Column> columns_;
  std::vector<bool> shown_;
  bool wide_;
};

/// "# " and `text`, folded into more such lines where it is longer than 80 columns. With a newline.
std::string header_line(const std::string& text);

/// Seconds as milliseconds in at most 8 characters; "-" when unknown.
std::string milliseconds(double seconds);

}  // namespace weightcast
