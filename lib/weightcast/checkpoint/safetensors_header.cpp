#include "weightcast/checkpoint/safetensors_header.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <tuple>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/strict_json.hpp"

namespace weightcast {
namespace {

constexpr std::size_t length_bytes = 8, max_dimensions = 32;
constexpr std::string_view metadata_key = "__metadata__";

[[noreturn]] void refuse(std::size_t offset, const std::string& message, const std::string& hint = {}) {
  throw Error(ExitCode::bad_data, fmt::format("safetensors header, byte {}: {}", offset, message), hint);
}
constexpr const char* cut_off = "download or copy it again: that was broken off before its end";

/// An entry, and where in the file it was declared.
struct Declared {
  SafetensorsEntry entry;
  std::size_t near = 0;
};

/// Collects entries and metadata. Everything that is not expected at its place is refused.
class HeaderHandler final : public JsonHandler {
 public:
  void begin_object(std::size_t near) override {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::member && name_ == metadata_key) {
      place_ = Place::metadata;
    } else if (place_ == Place::member) {
      place_ = Place::tensor;
      seen_ = {};
      offsets_.clear();
      declared_.push_back({{{name_, DType::U8, {}}, 0, 0}, near});
    } else {
      unexpected("an object", near);
    }
  }
  void key(const std::string& name, std::size_t near) override {
    if (place_ == Place::top || place_ == Place::metadata) {
      name_ = name;
      place_ = place_ == Place::top ? Place::member : Place::metadata_value;
      return;
    }
    const auto field = std::find(fields.begin(), fields.end(), name);
    if (field == fields.end())
      refuse(near, fmt::format("tensor \"{}\" has an unknown field \"{}\"", tensor_name(), printable(name)));
    place_ = Place::field;
    field_ = static_cast<std::size_t>(field - fields.begin());
  }
  void end_object(std::size_t near) override {
    if (place_ == Place::tensor) {
      finish_tensor(near);
      place_ = Place::top;
    } else {
      place_ = place_ == Place::metadata ? Place::top : Place::outside;
    }
  }
  void begin_array(std::size_t near) override {
    if (place_ != Place::field || fields[field_] == "dtype") unexpected("an array", near);
    place_ = Place::array;
  }
  void end_array(std::size_t) override {
    seen_[field_] = true;
    place_ = Place::tensor;
  }
  void string(const std::string& value, std::size_t near) override {
    if (place_ == Place::metadata_value) {
      metadata_.emplace(std::move(name_), value);
      place_ = Place::metadata;
      return;
    }
    if (place_ != Place::field || fields[field_] != "dtype") unexpected("a string", near);
    const auto dtype = dtype_from_name(value);
    if (!dtype)
      refuse(near, fmt::format("tensor \"{}\" has an unknown dtype \"{}\"", tensor_name(), printable(value, 40)));
    declared_.back().entry.info.dtype = *dtype;
    seen_[field_] = true;
    place_ = Place::tensor;
  }
  void unsigned_integer(std::uint64_t value, std::size_t near) override {
    if (skip_metadata_value()) return;
    if (place_ != Place::array) unexpected("a number", near);
    auto& list = fields[field_] == "shape" ? declared_.back().entry.info.shape : offsets_;
    if (list.size() == max_dimensions) {
      refuse(near,
             fmt::format("tensor \"{}\": more than {} numbers in {}", tensor_name(), max_dimensions, fields[field_]));
    }
    list.push_back(value);
  }
  void number(double, std::size_t near) override {
    if (!skip_metadata_value()) unexpected("a number that is negative or not an integer", near);
  }
  void boolean(bool, std::size_t near) override {
    if (!skip_metadata_value()) unexpected("a boolean", near);
  }
  void null(std::size_t near) override {
    if (place_ == Place::member && name_ == metadata_key) {
      place_ = Place::top;
    } else if (!skip_metadata_value()) {
      unexpected("null", near);
    }
  }

  std::vector<Declared> take_declared() { return std::move(declared_); }
  std::map<std::string, std::string> take_metadata() { return std::move(metadata_); }

 private:
  enum class Place { outside, top, member, metadata, metadata_value, tensor, field, array };
  static constexpr std::array<std::string_view, 3> fields = {"dtype", "shape", "data_offsets"};

  std::string tensor_name() const { return printable(declared_.back().entry.info.name); }

  /// Numbers, booleans and null in __metadata__ say nothing of tensors: they are passed over.
  bool skip_metadata_value() {
    if (place_ != Place::metadata_value) return false;
    place_ = Place::metadata;
    return true;
  }

  [[noreturn]] void unexpected(std::string_view found, std::size_t near) const {
    switch (place_) {
      case Place::outside: refuse(near, fmt::format("{} where the header object should be", found));
      case Place::member: refuse(near, fmt::format("\"{}\" is {} and not an object", printable(name_), found));
      case Place::metadata_value:
        refuse(near, fmt::format("__metadata__ \"{}\" is {} and not a string", printable(name_), found));
      default: refuse(near, fmt::format("tensor \"{}\": {} is or holds {}", tensor_name(), fields[field_], found));
    }
  }

  void finish_tensor(std::size_t near) {
    for (std::size_t i = 0; i < fields.size(); ++i) {
      if (!seen_[i]) refuse(near, fmt::format("tensor \"{}\" has no {}", tensor_name(), fields[i]));
    }
    auto& entry = declared_.back().entry;
    if (offsets_.size() != 2) {
      refuse(near,
             fmt::format("tensor \"{}\": data_offsets holds {} numbers and not 2", tensor_name(), offsets_.size()));
    }
    entry.begin = offsets_[0];
    entry.end = offsets_[1];
    const auto size = entry.info.size_bytes();
    if (!size) {
      refuse(near, fmt::format("tensor \"{}\": the size of {} overflows or is not a whole number of bytes",
                               tensor_name(), entry.info.describe()));
    }
    if (entry.begin > entry.end || entry.end - entry.begin != *size) {
      refuse(near, fmt::format("tensor \"{}\": data_offsets [{}, {}], but {} has {} bytes", tensor_name(), entry.begin,
                               entry.end, entry.info.describe(), *size));
    }
  }

  Place place_ = Place::outside;
  std::string name_;            // of the open member of the header or of __metadata__
  std::size_t field_ = 0;       // of the open tensor
  std::array<bool, 3> seen_{};  // its fields so far
  std::vector<std::uint64_t> offsets_;
  std::vector<Declared> declared_;
  std::map<std::string, std::string> metadata_;
};

/// Rule L4: sorts by offset and lets no byte of the data section be unclaimed or claimed twice.
void check_tiling(std::vector<Declared>& declared, std::uint64_t data_offset, std::uint64_t data_bytes) {
  std::sort(declared.begin(), declared.end(), [](const Declared& a, const Declared& b) {
    return std::tie(a.entry.begin, a.entry.end, a.entry.info.name) <
           std::tie(b.entry.begin, b.entry.end, b.entry.info.name);
  });
  std::uint64_t expected = 0;
  for (const auto& [entry, near] : declared) {
    if (entry.begin != expected) {
      refuse(near, fmt::format("tensor \"{}\" begins at data byte {}, but the one before it ends at {}: {}",
                               printable(entry.info.name), entry.begin, expected,
                               entry.begin > expected ? "a hole" : "an overlap"));
    }
    if (entry.end > data_bytes) {
      std::uint64_t end = 0;
      for (const auto& other : declared) end = std::max(end, other.entry.end);
      refuse(near,
             fmt::format("the file is truncated: {} of {} bytes of data are missing, from tensor \"{}\" on",
                         end - data_bytes, end, printable(entry.info.name)),
             cut_off);
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    fail(ExitCode::bad_data, "safetensors data, byte {}: {} bytes follow the end of the last tensor",
         data_offset + expected, data_bytes - expected);
  }
}

std::uint64_t read_little_endian(std::span<const std::byte, length_bytes> bytes) noexcept {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, std::uint64_t file_bytes) {
  if (file_bytes < length_bytes || start.size() < length_bytes) {
    refuse(0, fmt::format("the file has {} bytes, too few for a header",
                          std::min<std::uint64_t>(file_bytes, start.size())));
  }
  const auto size = read_little_endian(start.first<length_bytes>());
  if (size > safetensors_header_limit) {
    refuse(0, fmt::format("a header of {} bytes is announced, more than {}: not a safetensors file", size,
                          safetensors_header_limit));
  }
  if (size > file_bytes - length_bytes || size > start.size() - length_bytes) {
    refuse(0,
           fmt::format("a header of {} bytes is announced, but the file has only {} bytes: it is truncated", size,
                       file_bytes),
           cut_off);
  }
  const std::string_view json(reinterpret_cast<const char*>(start.data()) + length_bytes, size);
  HeaderHandler handler;
  parse_strict_json(json, handler, "safetensors header", 3, length_bytes);

  auto declared = handler.take_declared();
  SafetensorsHeader header;
  header.metadata = handler.take_metadata();
  header.data_offset = length_bytes + size;
  check_tiling(declared, header.data_offset, file_bytes - header.data_offset);
  header.entries.reserve(declared.size());
  for (auto& [entry, near] : declared) header.entries.push_back(std::move(entry));
  return header;
}

std::string make_safetensors_header(std::span<const TensorInfo> tensors,
                                    const std::map<std::string, std::string>& metadata) {
  const auto quoted = [](std::string_view text) { return nlohmann::json(text).dump(); };
  std::string json = "{";
  if (!metadata.empty()) {
    json += fmt::format("{}:{{", quoted(metadata_key));
    for (const auto& [name, value] : metadata) json += fmt::format("{}:{},", quoted(name), quoted(value));
    json.back() = '}';
    json += ',';
  }
  std::uint64_t begin = 0;
  for (const auto& tensor : tensors) {
    const auto size = tensor.size_bytes();
    const auto end = size ? checked_add(begin, *size) : std::nullopt;
    WEIGHTCAST_EXPECTS(end && tensor.name != metadata_key);
    json += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}},", quoted(tensor.name),
                        name(tensor.dtype), fmt::join(tensor.shape, ","), begin, *end);
    begin = *end;
  }
  if (json.size() > 1) json.pop_back();
  json += '}';
  json.resize(round_up(json.size(), 8), ' ');
  WEIGHTCAST_EXPECTS(json.size() <= safetensors_header_limit);

  std::string result(length_bytes, '\0');
  for (std::size_t i = 0; i < length_bytes; ++i) result[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  return result + json;
}

}  // namespace weightcast
