#include "weightcast/checkpoint/checkpoint.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "weightcast/checkpoint/safetensors_header.hpp"
#include "weightcast/checkpoint/sharded_index.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/expects.hpp"

namespace weightcast {
namespace fs = std::filesystem;

struct Checkpoint::State {
  struct Place {
    std::size_t file;
    std::uint64_t offset, size;  // bytes in that file
  };

  std::string path;
  std::vector<InputFile> files;
  std::vector<TensorInfo> tensors;  // sorted by name
  std::vector<Place> places;        // of each tensor
};

namespace {

/// A tensor while the shards are being read.
struct Found {
  TensorInfo info;
  std::size_t file;
  std::uint64_t offset, size;
};

/// Opens the safetensors file `path` and appends its tensors to `found`, its descriptor to `files`.
void add_file(const std::string& path, std::vector<InputFile>& files, std::vector<Found>& found) {
  InputFile file(path);
  // The length in the first 8 bytes is believed only as far as the file goes: the parser judges it.
  std::vector<std::byte> start(std::min<std::uint64_t>(file.size(), 8));
  file.read(0, start);
  std::uint64_t json_bytes = 0;
  for (std::size_t i = start.size(); i-- > 0;) json_bytes = json_bytes << 8 | std::to_integer<std::uint64_t>(start[i]);
  const auto read = start.size();
  start.resize(read + std::min({json_bytes, file.size() - read, safetensors_header_limit}));
  file.read(read, std::span(start).subspan(read));

  SafetensorsHeader header;
  try {
    header = parse_safetensors_header(start, file.size());
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", path, error.what()), "get or write this file again");
  }
  for (auto& entry : header.entries) {
    found.push_back({std::move(entry.info), files.size(), header.data_offset + entry.begin, entry.end - entry.begin});
  }
  files.push_back(std::move(file));
}

/// Rule I5: every name of the index is in its shard, and every tensor of a shard is in the index with that shard.
void compare_with_index(const std::string& path, const WeightMap& weight_map, std::span<const std::string> names,
                        std::span<const Found> found) {
  constexpr std::size_t shown = 50;
  std::vector<std::string> differences;
  std::size_t confirmed = 0;
  for (const auto& tensor : found) {
    const auto& file = names[tensor.file];
    const auto listed = weight_map.find(tensor.info.name);
    if (listed == weight_map.end()) {
      differences.push_back(
          fmt::format("{} holds {}, which the index does not list", file, printable(tensor.info.name)));
    } else if (listed->second != file) {
      differences.push_back(
          fmt::format("{} holds {}, which the index says is in {}", file, printable(tensor.info.name), listed->second));
    } else {
      ++confirmed;
    }
  }
  if (confirmed != weight_map.size()) {
    WeightMap missing = weight_map;
    for (const auto& tensor : found) {
      const auto listed = missing.find(tensor.info.name);
      if (listed != missing.end() && listed->second == names[tensor.file]) missing.erase(listed);
    }
    for (const auto& [name, file] : missing) {
      differences.push_back(fmt::format("{} does not hold {}, which the index says is there", file, printable(name)));
    }
  }
  if (differences.empty()) return;
  const auto count = differences.size();
  if (count > shown) {
    differences.resize(shown);
    differences.push_back(fmt::format("and {} more", count - shown));
  }
  throw Error(ExitCode::bad_data,
              fmt::format("{} and the shards disagree:\n  {}", path, fmt::join(differences, "\n  ")),
              "get the checkpoint again, index and shards from one place");
}

/// A name is there, be it a file or a dangling link: what is wrong with it is better said than taken for absence.
bool present(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  const fs::path folder(path);
  auto state = std::make_unique<State>();
  state->path = path;
  std::vector<Found> found;
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    add_file(path, state->files, found);
  } else if (present(folder / "model.safetensors")) {
    add_file(folder / "model.safetensors", state->files, found);
  } else if (const auto index = (folder / "model.safetensors.index.json").string(); present(index)) {
    const auto weight_map = parse_sharded_index(read_text_file(index, safetensors_header_limit), index);
    std::vector<std::string> names;
    for (const auto& [tensor, file] : weight_map) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    for (const auto& name : names) add_file(folder / name, state->files, found);
    compare_with_index(index, weight_map, names, found);
  } else {
    throw Error(ExitCode::no_input,
                fmt::format("{} has neither model.safetensors nor model.safetensors.index.json", path),
                "name a safetensors file or the folder of a Hugging Face checkpoint");
  }

  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.info.name < b.info.name; });
  for (auto& [info, file, offset, size] : found) {
    state->tensors.push_back(std::move(info));
    state->places.push_back({file, offset, size});
  }
  return Checkpoint(std::move(state));
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const std::string& Checkpoint::path() const noexcept {
  return state_->path;
}
std::span<const TensorInfo> Checkpoint::tensors() const noexcept {
  return state_->tensors;
}

std::ptrdiff_t Checkpoint::find(std::string_view name) const noexcept {
  const auto& tensors = state_->tensors;
  const auto at =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const TensorInfo& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return at != tensors.end() && at->name == name ? at - tensors.begin() : -1;
}

void Checkpoint::read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  WEIGHTCAST_EXPECTS(index < state_->places.size());
  const auto& place = state_->places[index];
  WEIGHTCAST_EXPECTS(offset <= place.size && destination.size() <= place.size - offset);
  state_->files[place.file].read(place.offset + offset, destination);
}

}  // namespace weightcast
