#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weightcast {

/// Receives the events of parse_strict_json(). Every hook may throw; the defaults refuse nothing and keep nothing.
/// `near` is a byte offset in the text at or just behind the value, for messages.
class JsonHandler {
 public:
  virtual ~JsonHandler() = default;
  virtual void begin_object(std::size_t /*near*/) {}
  virtual void key(const std::string& /*name*/, std::size_t /*near*/) {}
  virtual void end_object(std::size_t /*near*/) {}
  virtual void begin_array(std::size_t /*near*/) {}
  virtual void end_array(std::size_t /*near*/) {}
  virtual void string(const std::string& /*value*/, std::size_t /*near*/) {}
  virtual void unsigned_integer(std::uint64_t /*value*/, std::size_t /*near*/) {}
  /// Negative integers, and every number with a fraction or exponent. Integers that do not fit 64 bits are an error.
  virtual void number(double /*value*/, std::size_t /*near*/) {}
  virtual void boolean(bool /*value*/, std::size_t /*near*/) {}
  virtual void null(std::size_t /*near*/) {}

  /// A key comes a second time in one object: whether to go on, as if it were another key. False is an error.
  virtual bool take_repeated_key(const std::string& /*name*/) { return false; }
  /// An integer does not fit 64 bits: whether number() gets it, rounded. False is an error.
  virtual bool take_large_integer() { return false; }
};

/// Parses JSON of unknown origin (UTF-8, the whole text, surrounding white space allowed) without building a tree.
/// Error(bad_data), naming `what` and the byte offset (plus `base_offset`), on: bad syntax or UTF-8, a key twice in one
/// object, nesting deeper than `max_depth`, an integer out of range (unless `handler` takes these two). Never crashes,
/// whatever the bytes are.
void parse_strict_json(std::string_view text, JsonHandler& handler, const std::string& what, std::size_t max_depth = 32,
                       std::size_t base_offset = 0);

}  // namespace weightcast
