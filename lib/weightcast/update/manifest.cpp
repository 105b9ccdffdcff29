#include "weightcast/update/manifest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/strict_json.hpp"

namespace weightcast {
namespace {

/// {"schema": s, "plan_digest": s, "settings": {s: s}, "parameters": [[name, dtype, [extent, ...]], ...]}
class ManifestHandler final : public JsonHandler {
 public:
  Manifest manifest;

  void begin_object(std::size_t near) override {
    if (++objects_ > 2 || arrays_ > 0 || (objects_ == 2 && key_ != "settings"))
      refuse("an object is out of place", near);
  }
  void end_object(std::size_t) override {
    --objects_;
    if (objects_ == 1) key_.clear();
  }
  void key(const std::string& name, std::size_t near) override {
    if (objects_ == 2) {
      setting_ = name;
      return;
    }
    if (name != "schema" && name != "plan_digest" && name != "settings" && name != "parameters")
      refuse("unknown key " + printable(name), near);
    key_ = name;
  }
  void begin_array(std::size_t near) override {
    if (objects_ != 1 || key_ != "parameters" || ++arrays_ > 3) refuse("an array is out of place", near);
    if (arrays_ == 2) {
      manifest.parameters.emplace_back();
      field_ = 0;
    }
    if (arrays_ == 3 && field_++ != 2) refuse("a shape is out of place", near);
  }
  void end_array(std::size_t near) override {
    if (arrays_-- == 2 && field_ != 3) refuse("a parameter is not [name, dtype, shape]", near);
  }
  void string(const std::string& value, std::size_t near) override {
    if (objects_ == 2) {
      manifest.settings[setting_] = value;
    } else if (arrays_ == 2 && field_ == 0) {
      manifest.parameters.back().name = value;
      ++field_;
    } else if (arrays_ == 2 && field_ == 1) {
      const auto dtype = dtype_from_name(value);
      if (!dtype) refuse("unknown dtype " + printable(value), near);
      manifest.parameters.back().dtype = *dtype;
      ++field_;
    } else if (arrays_ == 0 && key_ == "schema") {
      manifest.schema = value;
    } else if (arrays_ == 0 && key_ == "plan_digest") {
      manifest.plan_digest = value;
    } else {
      refuse("a string is out of place", near);
    }
  }
  void unsigned_integer(std::uint64_t value, std::size_t near) override {
    if (arrays_ != 3) refuse("a number is out of place", near);
    manifest.parameters.back().shape.push_back(value);
  }
  void number(double, std::size_t near) override { refuse("a number is out of place", near); }
  void boolean(bool, std::size_t near) override { refuse("a boolean is out of place", near); }
  void null(std::size_t near) override { refuse("a null is out of place", near); }

 private:
  [[noreturn]] static void refuse(const std::string& why, std::size_t near) {
    fail(ExitCode::bad_data, "manifest, byte {}: {}", near, why);
  }

  int objects_ = 0, arrays_ = 0, field_ = 0;
  std::string key_, setting_;
};

}  // namespace

std::string to_json(const Manifest& manifest) {
  auto parameters = nlohmann::json::array();
  for (const auto& info : manifest.parameters) parameters.push_back({info.name, name(info.dtype), info.shape});
  return nlohmann::json{{"schema", manifest.schema},
                        {"plan_digest", manifest.plan_digest},
                        {"settings", manifest.settings},
                        {"parameters", parameters}}
      .dump();
}

Manifest parse_manifest(std::string_view text) {
  ManifestHandler handler;
  parse_strict_json(text, handler, "manifest", 8);
  if (handler.manifest.schema != Manifest{}.schema)
    fail(ExitCode::bad_data, "unknown manifest schema '{}'", printable(handler.manifest.schema));
  return std::move(handler.manifest);
}

std::string first_difference(const Manifest& mine, const Manifest& theirs) {
  const auto differ = [](const std::string& what, const std::string& here, const std::string& there) {
    return fmt::format("{} is {} here and {} there", what, here, there);
  };
  for (const auto& [key, value] : mine.settings) {
    const auto other = theirs.settings.find(key);
    if (other == theirs.settings.end()) return differ("settings." + key, value, "missing");
    if (other->second != value) return differ("settings." + key, value, printable(other->second));
  }
  if (mine.settings.size() != theirs.settings.size()) return "there are settings unknown here";
  for (std::size_t i = 0; i < std::min(mine.parameters.size(), theirs.parameters.size()); ++i) {
    const auto &a = mine.parameters[i], &b = theirs.parameters[i];
    if (a.name != b.name) return differ(fmt::format("parameter {}", i), a.name, printable(b.name));
    if (a != b) return differ("parameter " + a.name, a.describe(), b.describe());
  }
  if (mine.parameters.size() != theirs.parameters.size()) {
    return differ("the number of parameters", std::to_string(mine.parameters.size()),
                  std::to_string(theirs.parameters.size()));
  }
  if (mine.plan_digest != theirs.plan_digest)
    return differ("plan_digest", mine.plan_digest, printable(theirs.plan_digest));
  return {};
}

}  // namespace weightcast
