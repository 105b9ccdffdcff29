// Tables and lines that fit 80 columns.
#include "output/table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>
#include <sstream>

#include "weightcast/core/text_width.hpp"

namespace weightcast {
namespace {

TEST(Shorten, KeepsBothEnds) {
  EXPECT_EQ(shorten("model.norm.weight", 17), "model.norm.weight");
  EXPECT_EQ(shorten("model.layers.10.mlp.down_proj.weight", 20), "model.la...oj.weight");
  EXPECT_EQ(shorten("abcdefgh", 6), "abcfgh");  // no room to say so
  EXPECT_EQ(shorten("abc", 0), "");
  EXPECT_EQ(shorten("\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4", 10), "\xc3\xa4...\xc3\xa4\xc3\xa4");
}

RC_GTEST_PROP(Shorten, NeverIsLonger, (const std::string& text)) {
  const auto limit = *rc::gen::inRange<std::size_t>(0, text.size() + 3);
  const auto result = shorten(text, limit);
  RC_ASSERT(result.size() <= limit);
  if (limit >= text.size()) RC_ASSERT(result == text);
}

RC_GTEST_PROP(Fold, EveryLineFitsAndNoWordIsLost, ()) {
  const auto columns = *rc::gen::inRange<std::size_t>(12, 100);
  const auto words = *rc::gen::container<std::vector<std::string>>(
      rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::inRange('a', 'z'))));
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : " ") + word;
  std::istringstream lines(fold(text, "#   ", columns));
  std::vector<std::string> found;
  for (std::string line; std::getline(lines, line);) {
    RC_ASSERT(line.size() <= columns);
    std::istringstream in(line);
    for (std::string word; in >> word;) {
      if (word != "#") found.push_back(word);
    }
  }
  RC_ASSERT(found.size() == words.size());
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i].size() + 5 <= columns) RC_ASSERT(found[i] == words[i]);
  }
}

TEST(HeaderLine, IsFoldedAtWords) {
  EXPECT_EQ(header_line("short"), "# short\n");
  EXPECT_EQ(header_line("from checkpoint " + std::string(50, 'a') + " to checkpoint step"),
            "# from checkpoint " + std::string(50, 'a') + " to\n#   checkpoint step\n");
}

const std::vector<Column> columns = {{"model", 10, 0, true}, {"vote", 20, 2}, {"commit", 30, 1}, {"total", 30}};

TEST(Table, LeavesOutWhatMattersLeast) {
  const Table table(columns, false);
  EXPECT_EQ(table.head(), "model                      vote                          total\n");
  EXPECT_EQ(table.note(), "; --wide adds commit");
  EXPECT_EQ(table.row({"a-long-model-name", "1", "2", "3"}),
            "a-l...name                    1                              3\n");
}

TEST(Table, WideHasAll) {
  const Table table(columns, true);
  EXPECT_EQ(table.note(), "");
  EXPECT_EQ(table.row({"a-long-model-name", "1", "2", "3"}),
            "a-long-model-name                    1                              2                              3\n");
}

TEST(Milliseconds, HaveAWidth) {
  EXPECT_EQ(milliseconds(0.0000123), "0.012");
  EXPECT_EQ(milliseconds(9.9999), "9999.900");
  EXPECT_EQ(milliseconds(12.3456), "12345.6");
  EXPECT_EQ(milliseconds(1234567), "1234567000");
  EXPECT_EQ(milliseconds(std::numeric_limits<double>::quiet_NaN()), "-");
}

}  // namespace
}  // namespace weightcast
