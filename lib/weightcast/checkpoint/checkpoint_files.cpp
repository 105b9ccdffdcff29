#include "weightcast/checkpoint/checkpoint_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <set>

#include "weightcast/checkpoint/safetensors_header.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/download.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/foreign.hpp"
#include "weightcast/core/wrong_path.hpp"

namespace weightcast {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view file_ending = ".safetensors", index_ending = ".safetensors.index.json";
constexpr std::array<std::string_view, 3> stems{"model", "consolidated", "pytorch_model"};
constexpr std::size_t shard_limit = 100'000;

/// "model-00002-of-00003.safetensors": its set ("model-*-of-00003.safetensors"), its number, and of how many.
struct ShardName {
  std::string set;
  std::size_t number = 0, count = 0;
};

std::optional<std::size_t> digits(std::string_view text) {
  std::size_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || status != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<ShardName> shard_name(std::string_view file) {
  if (!file.ends_with(file_ending)) return std::nullopt;
  const auto name = file.substr(0, file.size() - file_ending.size());
  const auto of = name.rfind("-of-");
  if (of == name.npos || of == 0) return std::nullopt;
  const auto dash = name.rfind('-', of - 1);
  if (dash == name.npos) return std::nullopt;
  const auto stem = name.substr(0, dash);
  const auto number = digits(name.substr(dash + 1, of - dash - 1)), count = digits(name.substr(of + 4));
  if (std::find(stems.begin(), stems.end(), stem) == stems.end() || !number || !count) return std::nullopt;
  if (*number < 1 || *number > *count || *count > shard_limit) return std::nullopt;
  return ShardName{fmt::format("{}-*{}{}", stem, name.substr(of), file_ending), *number, *count};
}

/// Shards of one save that no index lists.
struct ShardSet {
  std::vector<std::string> files;
  std::set<std::size_t> numbers;
  std::size_t count = 0;

  bool whole() const { return numbers.size() == count; }
  std::string missing(const std::string& set) const {
    std::vector<std::string> names;
    for (std::size_t i = 1; i <= count; ++i) {
      if (!numbers.contains(i)) names.push_back(std::string(set).replace(set.find('*'), 1, fmt::format("{:05}", i)));
    }
    return list_some(names);
  }
};

CheckpointFiles read_index(const std::string& folder, const std::string& name) {
  const auto path = (fs::path(folder) / name).string();
  const auto text = read_text_file(path, safetensors_header_limit);
  CheckpointFiles result{name, folder, {}};
  try {
    result.index = parse_sharded_index(text, path);
  } catch (const Error& error) {
    refuse_foreign_content(path, text);
    if (name.ends_with(index_ending))
      throw Error(error.code(), error.what(), "get the index again, from where its shards are from");
    throw Error(error.code(), path + " is neither weights nor an index of files with weights",
                fmt::format("name the folder of the checkpoint, {}", folder));
  }
  for (const auto& [tensor, file] : result.index->weight_map) result.files.push_back(file);
  std::sort(result.files.begin(), result.files.end());
  result.files.erase(std::unique(result.files.begin(), result.files.end()), result.files.end());
  std::vector<std::string> missing;
  std::error_code ignored;
  for (const auto& file : result.files) {
    if (fs::symlink_status(fs::path(folder) / file, ignored).type() == fs::file_type::not_found)
      missing.push_back(file);
  }
  if (!missing.empty()) {
    throw Error(ExitCode::no_input,
                fmt::format("{}: {} of the {} files that it lists are missing: {}", path, missing.size(),
                            result.files.size(), list_some(missing, 3)),
                "download the missing files");
  }
  return result;
}

/// Names in a folder. A name is there, be it a file or a dangling link: what is wrong with it is better said than taken
/// for absence.
class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {
    std::error_code error;
    for (fs::directory_iterator i(path, error), end; !error && i != end; i.increment(error))
      names_.insert(i->path().filename().string());
    if (error) throw cannot_open(path, error.value());
  }

  void search(CheckpointSearch& result) const {
    const bool adapter = has("adapter_config.json") || has("adapter_model.safetensors") || has("adapter_model.bin");
    std::optional<Error> broken;  // what is wrong with an index
    std::string broken_index;
    std::set<std::string> listed;
    for (const auto stem : {"model", "consolidated"}) {
      const auto index = stem + std::string(index_ending), single = stem + std::string(file_ending);
      if (has(index)) {
        try {
          result.candidates.push_back(read_index(path_, index));
          const auto& files = result.candidates.back().files;
          listed.insert(files.begin(), files.end());
        } catch (const Error& error) {
          broken = error;
          broken_index = index;
        }
      }
      if (has(single) && !listed.contains(single)) result.candidates.push_back({single, path_, {single}});
    }
    if (broken && result.candidates.empty()) throw *broken;
    if (broken) refuse_two_checkpoints(result.candidates.front(), {broken_index, path_, {}}, broken->what());
    add_shard_sets(result, listed);
    if (result.candidates.empty()) refuse(adapter);
    if (adapter)
      result.notes.push_back("the adapter beside it (adapter_*) is not loaded: to use it, merge it into the weights");
  }

 private:
  bool has(const std::string& name) const { return names_.contains(name); }

  void add_shard_sets(CheckpointSearch& result, const std::set<std::string>& listed) const {
    const bool indexed = !listed.empty();
    std::map<std::string, ShardSet> sets;
    std::set<std::string> of_index;
    for (const auto& name : names_) {
      const auto shard = shard_name(name);
      if (!shard) continue;
      if (listed.contains(name)) of_index.insert(shard->set);
      auto& set = sets[shard->set];
      set.files.push_back(name);
      set.numbers.insert(shard->number);
      set.count = shard->count;
    }
    std::vector<std::pair<CheckpointFiles, std::string>> cut;  // and what is missing
    for (const auto& [name, set] : sets) {
      if (of_index.contains(name)) continue;
      if (set.whole()) {
        result.candidates.push_back({name, path_, set.files});
      } else if (indexed) {
        result.notes.push_back(fmt::format("{} is not in the index and was not used", list_some(set.files)));
      } else {
        cut.emplace_back(CheckpointFiles{name, path_, set.files}, set.missing(name));
      }
    }
    if (cut.empty()) return;
    const auto& [files, missing] = cut.front();
    if (!result.candidates.empty())
      refuse_two_checkpoints(result.candidates.front(), files, "of the second is missing: " + missing);
    throw Error(ExitCode::no_input, fmt::format("{}: of the shards {} is missing: {}", path_, files.name, missing),
                "get the missing files");
  }

  [[noreturn]] void refuse(bool adapter) const {
    if (adapter) {
      throw Error(ExitCode::no_input, fmt::format("{} holds an adapter and no weights of a model", path_),
                  "merge it into its base model (in PEFT: merge_and_unload()), save that, and name that folder");
    }
    std::vector<std::string> tensors;
    for (const auto& name : names_) {
      if (name.ends_with(file_ending)) tensors.push_back(name);
    }
    const auto neither = fmt::format("{} has neither model.safetensors nor model.safetensors.index.json", path_);
    if (!tensors.empty())
      throw Error(ExitCode::no_input, fmt::format("{}, only {}", neither, list_some(tensors)), "name the file");
    if (names_.empty()) throw Error(ExitCode::no_input, path_ + " is empty", "check the path, or download the model");
    if (const auto inside = folders_inside(); !inside.empty()) {
      throw Error(ExitCode::no_input, fmt::format("{}; folders in it have them: {}", neither, list_some(inside)),
                  fmt::format("name one of them, like {}", (fs::path(path_) / inside.front()).string()));
    }
    if (const auto found = foreign_folder(names_)) {
      throw Error(ExitCode::no_input, fmt::format("{}: it holds {}", neither, found->what), std::string(found->hint));
    }
    throw Error(ExitCode::no_input,
                fmt::format("{}, only {}", neither, list_some(std::vector(names_.begin(), names_.end()), 3)),
                "name a safetensors file or the folder of a Hugging Face checkpoint, with its weights");
  }

  /// Folders in this one that can be named in its place: of a training's checkpoints, of a Hub cache, and the like.
  std::vector<std::string> folders_inside() const {
    constexpr std::size_t most_names = 1000;
    std::vector<std::string> result;
    std::error_code ignored;
    for (const auto& name : names_) {
      const auto inside = fs::path(path_) / name;
      for (const auto* sign : {"model.safetensors", "model.safetensors.index.json", "snapshots"}) {
        if (result.size() == most_names || !fs::exists(inside / sign, ignored)) continue;
        result.push_back(name);
        break;
      }
    }
    return result;
  }

  std::string path_;
  std::set<std::string> names_;
};

}  // namespace

CheckpointSearch find_checkpoint(const std::string& path) {
  CheckpointSearch result;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    result.folder = path;
    if (const auto snapshot = hub_snapshot(path)) {
      result.folder = *snapshot;
      result.notes.push_back("the snapshot " + fs::path(*snapshot).filename().string());
    }
    Folder(result.folder).search(result);
    const auto& name = result.candidates.front().name;
    if (name.find('*') != name.npos) result.notes.push_back("the shards " + name + ", without an index");
    if (name.starts_with("consolidated.")) result.notes.push_back("read from " + name);
    return result;
  }
  expect_there(path);
  const fs::path file(path);
  result.folder = file.has_parent_path() ? file.parent_path().string() : ".";
  if (path.ends_with(".json")) {
    result.candidates.push_back(read_index(result.folder, file.filename()));
  } else {
    result.candidates.push_back({file.filename(), result.folder, {file.filename()}});
  }
  return result;
}

void refuse_two_checkpoints(const CheckpointFiles& a, const CheckpointFiles& b, const std::string& why) {
  const auto& one = a.name.find('*') == a.name.npos ? a : b;
  throw Error(ExitCode::bad_data, fmt::format("{} holds two checkpoints, {} and {}: {}", a.folder, a.name, b.name, why),
              one.name.find('*') == one.name.npos
                  ? fmt::format("move one of them away, or name the one that you mean, like {}",
                                (fs::path(one.folder) / one.name).string())
                  : "move one of them away");
}

}  // namespace weightcast
