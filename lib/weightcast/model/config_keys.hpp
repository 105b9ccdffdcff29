#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "weightcast/core/error.hpp"
#include "weightcast/core/strict_json.hpp"

/// The keys of a config.json, by their types. Internal to model.
namespace weightcast {

/// Far above any model, and small enough that a product of two never overflows.
inline constexpr std::uint64_t layer_limit = 10'000, expert_limit = 10'000, size_limit = std::uint64_t{1} << 24;

/// What of a list is kept: its strings and its whole numbers, each in their order.
struct ConfigList {
  std::vector<std::string> strings;
  std::vector<std::uint64_t> numbers;
};

/// The values of one object's keys. Of what is nested it keeps "text_config", the keys of a language model inside
/// another model, and of arrays a ConfigList.
class ConfigKeys : public JsonHandler {
 public:
  explicit ConfigKeys(std::string what) : what_(std::move(what)) {}

  void begin_object(std::size_t near) override;
  void begin_array(std::size_t near) override;
  void end_object(std::size_t near) override;
  void end_array(std::size_t near) override;
  void key(const std::string& name, std::size_t near) override;
  void string(const std::string& value, std::size_t near) override;
  void unsigned_integer(std::uint64_t value, std::size_t near) override;
  void number(double value, std::size_t near) override;
  void boolean(bool value, std::size_t near) override;
  void null(std::size_t near) override;
  bool take_repeated_key(const std::string& name) override;
  bool take_large_integer() override { return true; }

  const std::string& what() const noexcept { return what_; }
  const std::set<std::string>& repeated() const noexcept { return repeated_; }
  /// "text_config", or null. Error(bad_data) when it appears twice.
  const ConfigKeys* text() const {
    if (text_ && repeated_.contains("text_config"))
      fail(ExitCode::bad_data, "{}: the key \"text_config\" appears twice", what_);
    return text_.get();
  }

  /// The value of `key`, or nothing when it is absent or null. `expected` describes T for the message.
  template <typename T>
  std::optional<T> get(const std::string& key, std::string_view expected) const {
    if (repeated_.contains(key)) fail(ExitCode::bad_data, "{}: the key \"{}\" appears twice", what_, key);
    const auto found = values_.find(key);
    if (found == values_.end() || std::holds_alternative<std::nullptr_t>(found->second)) return std::nullopt;
    const T* value = std::get_if<T>(&found->second);
    if (value == nullptr) fail(ExitCode::bad_data, "{}: \"{}\" must be {}", what_, key, expected);
    return *value;
  }
  /// It is there, and not null.
  bool has(const std::string& key) const;
  /// It is there.
  bool names(const std::string& key) const { return values_.contains(key); }
  bool flag(const std::string& key, bool otherwise) const;
  /// A whole number from `least` to `most`; see get().
  std::optional<std::uint64_t> number_in(const std::string& key, std::uint64_t least, std::uint64_t most) const;
  std::optional<std::uint64_t> optional_size(const std::string& key, std::uint64_t limit = size_limit) const {
    return number_in(key, 1, limit);
  }
  /// Error(bad_data) when it is missing.
  std::uint64_t size(const std::string& key, std::uint64_t limit = size_limit) const;

 private:
  struct Nested {};
  using Value = std::variant<std::nullptr_t, std::uint64_t, double, bool, std::string, ConfigList, Nested>;

  void keep(Value value);
  /// The list that is being read, or null.
  ConfigList* list();
  /// Whom an event belongs to: this, or the text model that is being read.
  ConfigKeys* reader() noexcept { return in_text_ ? text_.get() : nullptr; }

  std::string what_, key_;
  std::size_t depth_ = 0;
  std::map<std::string, Value> values_;
  std::set<std::string> repeated_;
  std::unique_ptr<ConfigKeys> text_;
  bool in_text_ = false;
};

/// Python writes NaN and Infinity, which are not JSON. Where a value may stand they become numbers of the same length:
/// no number with a fraction is ever read from a config, so nothing that is needed can be one of them.
std::string without_infinities(std::string_view text);

}  // namespace weightcast
