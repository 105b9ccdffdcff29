#include "weightcast/core/strict_json.hpp"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

/// Walks the text and leaves its position behind, because the parser does not tell its hooks where it is.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  const char** position;

  reference operator*() const noexcept { return *at; }
  CountingIterator& operator++() noexcept {
    *position = ++at;
    return *this;
  }
  bool operator==(const CountingIterator& other) const noexcept { return at == other.at; }
  bool operator!=(const CountingIterator& other) const noexcept { return at != other.at; }
};

/// Translates nlohmann's events and adds the checks that it leaves out.
class StrictSax {
 public:
  StrictSax(std::string_view text, JsonHandler& handler, const std::string& what, std::size_t max_depth,
            std::size_t base)
      : text_(text), handler_(handler), what_(what), max_depth_(max_depth), base_(base), position_(text.data()) {}

  CountingIterator begin() noexcept { return {text_.data(), &position_}; }
  CountingIterator end() noexcept { return {text_.data() + text_.size(), &position_}; }

  [[noreturn]] void refuse(std::size_t offset, const std::string& message) const {
    fail(ExitCode::bad_data, "{}, byte {}: {}", what_, offset, message);
  }

  bool null() { return handler_.null(near()), true; }
  bool boolean(bool value) { return handler_.boolean(value, near()), true; }
  bool number_integer(std::int64_t value) { return handler_.number(static_cast<double>(value), near()), true; }
  bool number_unsigned(std::uint64_t value) { return handler_.unsigned_integer(value, near()), true; }
  bool number_float(double value, const std::string& literal) {
    // An integer that does not fit 64 bits arrives here, rounded.
    if (literal.find_first_of(".eE") == std::string::npos && !handler_.take_large_integer()) {
      refuse(near(), fmt::format("the integer {} does not fit 64 bits", printable(literal, 40)));
    }
    return handler_.number(value, near()), true;
  }
  bool string(std::string& value) { return handler_.string(value, near()), true; }
  bool binary(std::vector<std::uint8_t>&) { return false; }  // never happens in text
  bool start_object(std::size_t) {
    enter();
    keys_.emplace_back();
    return handler_.begin_object(near()), true;
  }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second && !handler_.take_repeated_key(name))
      refuse(near(), fmt::format("the key \"{}\" appears twice", printable(name)));
    return handler_.key(name, near()), true;
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return handler_.end_object(near()), true;
  }
  bool start_array(std::size_t) {
    enter();
    return handler_.begin_array(near()), true;
  }
  bool end_array() {
    --depth_;
    return handler_.end_array(near()), true;
  }
  bool parse_error(std::size_t characters_read, const std::string&, const nlohmann::json::exception& error) {
    // "[json.exception...] parse error at line 1, column 2: <what we want>; last read: '<raw bytes>'; expected ..." or
    // "[json.exception.out_of_range.406] <what we want>"
    std::string_view message = error.what();
    if (const auto cut = message.find(error.id == 101 ? ": " : "] "); cut != message.npos)
      message.remove_prefix(cut + 2);
    message = message.substr(0, message.find("; last read"));
    const auto offset = std::min(std::max<std::size_t>(characters_read, 1) - 1, text_.size());
    refuse(base_ + offset, printable(message));
  }

 private:
  std::size_t near() const noexcept { return base_ + static_cast<std::size_t>(position_ - text_.data()); }
  void enter() {
    if (++depth_ > max_depth_) refuse(near(), fmt::format("nested deeper than {} levels", max_depth_));
  }

  std::string_view text_;
  JsonHandler& handler_;
  const std::string& what_;
  std::size_t max_depth_, base_, depth_ = 0;
  const char* position_;
  std::vector<std::set<std::string>> keys_;  // of each open object
};

}  // namespace

void parse_strict_json(std::string_view text, JsonHandler& handler, const std::string& what, std::size_t max_depth,
                       std::size_t base_offset) {
  StrictSax sax(text, handler, what, max_depth, base_offset);
  // The parser takes a NUL for the end of the text and skips a byte order mark.
  if (const auto nul = text.find('\0'); nul != text.npos) sax.refuse(base_offset + nul, "a NUL byte");
  if (text.starts_with("\xef\xbb\xbf")) sax.refuse(base_offset, "a byte order mark");
  nlohmann::json::sax_parse(sax.begin(), sax.end(), &sax);
}

}  // namespace weightcast
