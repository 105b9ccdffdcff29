#include "weightcast/core/text_width.hpp"

#include <algorithm>

namespace weightcast {
namespace {

bool continues(char c) noexcept {
  return (static_cast<unsigned char>(c) & 0xc0U) == 0x80U;  // a byte of a UTF-8 character that is not its first
}

}  // namespace

std::string shorten(std::string_view text, std::size_t limit) {
  constexpr std::string_view gap = "...";
  if (text.size() <= limit) return std::string(text);
  const std::string_view between = limit > 2 * gap.size() ? gap : "";
  const std::size_t kept = limit - between.size();
  std::size_t head = kept / 2, tail = text.size() - (kept - head);
  while (head > 0 && continues(text[head])) --head;
  while (tail < text.size() && continues(text[tail])) ++tail;
  return std::string(text.substr(0, head)).append(between).append(text.substr(tail));
}

std::string fold(std::string_view text, std::string_view indent, std::size_t columns) {
  std::string result, line;
  const std::size_t room = columns > indent.size() ? columns - indent.size() : 1;
  while (!text.empty()) {
    const auto end = std::min(text.find(' ', text.find_first_not_of(' ')), text.size());  // spaces, then a word
    auto word = text.substr(0, end);
    text.remove_prefix(end);
    if (!line.empty() && line.size() + word.size() > columns) {
      result += line + '\n';
      line = indent;
      word.remove_prefix(std::min(word.find_first_not_of(' '), word.size()));
    }
    line += word.size() > room ? shorten(word, room) : std::string(word);
  }
  return result + line;
}

}  // namespace weightcast
