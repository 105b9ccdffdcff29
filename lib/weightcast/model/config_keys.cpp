#include "weightcast/model/config_keys.hpp"

namespace weightcast {

void ConfigKeys::begin_object(std::size_t near) {
  if (!in_text_ && depth_ == 1 && key_ == "text_config") {
    text_ = std::make_unique<ConfigKeys>(what_ + ": text_config");
    in_text_ = true;
  }
  if (auto* const text = reader()) return text->begin_object(near);
  if (depth_ > 0) keep(Nested{});
  ++depth_;
}
void ConfigKeys::end_object(std::size_t near) {
  if (auto* const text = reader()) {
    text->end_object(near);
    in_text_ = text->depth_ > 0;
    return;
  }
  --depth_;
}
void ConfigKeys::begin_array(std::size_t near) {
  if (auto* const text = reader()) return text->begin_array(near);
  keep(ConfigList{});
  ++depth_;
}
void ConfigKeys::end_array(std::size_t near) {
  if (auto* const text = reader()) return text->end_array(near);
  --depth_;
}
void ConfigKeys::key(const std::string& name, std::size_t near) {
  if (auto* const text = reader()) return text->key(name, near);
  if (depth_ == 1) key_ = name;
}
void ConfigKeys::string(const std::string& value, std::size_t near) {
  if (auto* const text = reader()) return text->string(value, near);
  if (auto* const array = list()) {
    array->strings.push_back(value);
  } else {
    keep(value);
  }
}
void ConfigKeys::unsigned_integer(std::uint64_t value, std::size_t near) {
  if (auto* const text = reader()) return text->unsigned_integer(value, near);
  if (auto* const array = list()) {
    array->numbers.push_back(value);
  } else {
    keep(value);
  }
}
void ConfigKeys::number(double value, std::size_t near) {
  if (auto* const text = reader()) return text->number(value, near);
  keep(value);
}
void ConfigKeys::boolean(bool value, std::size_t near) {
  if (auto* const text = reader()) return text->boolean(value, near);
  keep(value);
}
void ConfigKeys::null(std::size_t near) {
  if (auto* const text = reader()) return text->null(near);
  keep(nullptr);
}
bool ConfigKeys::take_repeated_key(const std::string& name) {
  if (auto* const text = reader()) return text->take_repeated_key(name);
  if (depth_ == 1) repeated_.insert(name);
  return true;
}

void ConfigKeys::keep(Value value) {
  if (depth_ == 0) fail(ExitCode::bad_data, "{}: not a JSON object", what_);
  if (depth_ == 1) values_[key_] = std::move(value);
}

ConfigList* ConfigKeys::list() {
  return depth_ == 2 ? std::get_if<ConfigList>(&values_[key_]) : nullptr;
}

bool ConfigKeys::has(const std::string& key) const {
  if (repeated_.contains(key)) return true;
  const auto found = values_.find(key);
  return found != values_.end() && !std::holds_alternative<std::nullptr_t>(found->second);
}

bool ConfigKeys::flag(const std::string& key, bool otherwise) const {
  return get<bool>(key, "true or false").value_or(otherwise);
}

std::optional<std::uint64_t> ConfigKeys::number_in(const std::string& key, std::uint64_t least,
                                                   std::uint64_t most) const {
  const auto expected = fmt::format("a whole number from {} to {}", least, most);
  const auto value = get<std::uint64_t>(key, expected);
  if (value && (*value < least || *value > most))
    fail(ExitCode::bad_data, "{}: \"{}\" is {}, it must be {}", what_, key, *value, expected);
  return value;
}

std::uint64_t ConfigKeys::size(const std::string& key, std::uint64_t limit) const {
  const auto value = optional_size(key, limit);
  if (!value) fail(ExitCode::bad_data, "{}: \"{}\" is missing", what_, key);
  return *value;
}

std::string without_infinities(std::string_view text) {
  std::string result(text);
  constexpr std::string_view before = ":[, \t\r\n", after = ",]} \t\r\n";
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\') ++i;
    if (in_string || i == 0) continue;
    for (const std::string_view word : {"NaN", "Infinity"}) {
      const std::size_t start = text[i - 1] == '-' && i > 1 ? i - 2 : i - 1, end = i + word.size();
      if (!text.substr(i).starts_with(word) || before.find(text[start]) == before.npos) continue;
      if (end < text.size() && after.find(text[end]) != after.npos)
        result.replace(i, word.size(), "0." + std::string(word.size() - 2, '0'));
    }
  }
  return result;
}

}  // namespace weightcast
