#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "weightcast/checkpoint/checkpoint_files.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/strict_json.hpp"

namespace weightcast {
namespace {

/// The path without `.` and empty parts; nothing when it is absolute, goes up, or names no file.
std::optional<std::string> path_in_folder(std::string_view file) {
  if (file.empty() || file.front() == '/' || file.back() == '/' || file.find('\0') != file.npos) return std::nullopt;
  std::string result;
  for (std::size_t begin = 0, end = 0; begin < file.size(); begin = end + 1) {
    end = std::min(file.find('/', begin), file.size());
    const auto part = file.substr(begin, end - begin);
    if (part == "..") return std::nullopt;
    if (part.empty() || part == ".") {
      if (end == file.size()) return std::nullopt;
      continue;
    }
    if (!result.empty()) result += '/';
    result += part;
  }
  return result;
}

/// Takes the strings of the top-level member weight_map and metadata.total_size; what other members hold is skipped.
class IndexHandler final : public JsonHandler {
 public:
  explicit IndexHandler(const std::string& what) : what_(what) {}

  void begin_object(std::size_t near) override {
    ++depth_;
    if (depth_ == 2) in_metadata_ = name_ == "metadata";
    if (in_weight_map_) {
      if (depth_ > 2) unexpected(near);
      found_ = true;
    }
  }
  void end_object(std::size_t) override { leave(); }
  void begin_array(std::size_t near) override {
    ++depth_;
    if (in_weight_map_ || depth_ == 1) unexpected(near);
  }
  void end_array(std::size_t) override { leave(); }
  void key(const std::string& name, std::size_t) override {
    if (depth_ == 1) in_weight_map_ = name == "weight_map";
    name_ = name;
  }
  void string(const std::string& file, std::size_t near) override {
    if (!in_weight_map_ && depth_ > 0) return;
    if (depth_ != 2) unexpected(near);
    auto path = path_in_folder(file);
    if (!path) {
      fail(ExitCode::bad_data, "{}, byte {}: tensor \"{}\" is said to be in \"{}\", which is not a file of this folder",
           what_, near, printable(name_), printable(file));
    }
    index_.weight_map.emplace(std::move(name_), std::move(*path));
  }
  void unsigned_integer(std::uint64_t value, std::size_t near) override {
    if (in_metadata_ && depth_ == 2 && name_ == "total_size") index_.total_bytes = value;
    scalar(near);
  }
  void number(double, std::size_t near) override { scalar(near); }
  void boolean(bool, std::size_t near) override { scalar(near); }
  void null(std::size_t near) override { scalar(near); }

  ShardedIndex take() {
    if (!found_) fail(ExitCode::bad_data, "{}: there is no weight_map in it", what_);
    return std::move(index_);
  }

 private:
  void leave() {
    if (--depth_ == 1) in_weight_map_ = in_metadata_ = false;
  }
  void scalar(std::size_t near) const {
    if (in_weight_map_ || depth_ == 0) unexpected(near);
  }
  [[noreturn]] void unexpected(std::size_t near) const {
    fail(ExitCode::bad_data, "{}, byte {}: expected {}", what_, near,
         depth_ == 0 || !in_weight_map_ ? "an object with a weight_map"
                                        : "weight_map to be an object of tensor names and file names");
  }

  const std::string& what_;
  std::size_t depth_ = 0;
  bool in_weight_map_ = false, in_metadata_ = false, found_ = false;
  std::string name_;
  ShardedIndex index_;
};

}  // namespace

ShardedIndex parse_sharded_index(std::string_view json, const std::string& what) {
  IndexHandler handler(what);
  parse_strict_json(json, handler, what);
  return handler.take();
}

std::string make_sharded_index(const WeightMap& weight_map, std::uint64_t total_bytes) {
  return nlohmann::json{{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}}.dump(2) + "\n";
}

}  // namespace weightcast
