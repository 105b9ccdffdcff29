#include "weightcast/checkpoint/checkpoint.hpp"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <utility>

#include "weightcast/checkpoint/checkpoint_files.hpp"
#include "weightcast/checkpoint/safetensors_header.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/foreign.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t block_bytes = 4 * mebibyte;

/// A tensor while the shards are being read.
struct Found {
  TensorInfo info;
  std::size_t file;
  std::uint64_t offset, size;
};

/// Throws when a file that could not be parsed is not even of that kind. The header of one that is begins with {.
void refuse_other_kinds(const std::string& path, std::string_view start) {
  constexpr std::size_t json_at = 8;
  if (start.empty()) {
    throw Error(ExitCode::bad_data, path + " is empty",
                "download or write it again: that was broken off, or the disk was full");
  }
  refuse_foreign_content(path, start);
  if (start.size() > json_at && start[json_at] == '{') return;
  throw Error(ExitCode::bad_data,
              fmt::format("{} is not a safetensors file: it begins with {}", path, describe_start(start)),
              "name a safetensors file, the folder of a Hugging Face checkpoint or, where it is taken, a snapshot");
}

/// Opens the safetensors file `path` and appends its tensors to `found`, its descriptor to `files`.
void add_file(const std::string& path, std::vector<InputFile>& files, std::vector<Found>& found) {
  InputFile file(path);
  // The length in the first 8 bytes is believed only as far as the file goes: the parser judges it.
  std::vector<std::byte> start(std::min<std::uint64_t>(file.size(), 8));
  file.read(0, start);
  std::uint64_t json_bytes = 0;
  for (std::size_t i = start.size(); i-- > 0;) json_bytes = json_bytes << 8 | std::to_integer<std::uint64_t>(start[i]);
  const auto read = start.size();
  constexpr std::uint64_t enough_to_judge = 512;
  const auto wanted = json_bytes > safetensors_header_limit ? enough_to_judge : std::max(json_bytes, enough_to_judge);
  start.resize(read + std::min(wanted, file.size() - read));
  file.read(read, std::span(start).subspan(read));

  SafetensorsHeader header;
  try {
    header = parse_safetensors_header(start, file.size());
  } catch (const Error& error) {
    refuse_other_kinds(path, {reinterpret_cast<const char*>(start.data()), start.size()});
    throw Error(error.code(), fmt::format("{}: {}", path, error.what()),
                error.hint().empty() ? "get or write this file again" : error.hint());
  }
  for (auto& entry : header.entries) {
    found.push_back({std::move(entry.info), files.size(), header.data_offset + entry.begin, entry.end - entry.begin});
  }
  files.push_back(std::move(file));
}

/// Rule I3: of the folders on the way to a shard none is a link that leads elsewhere. A shard itself may be a link.
void check_folders(const CheckpointFiles& from) {
  std::error_code missing;  // left to InputFile to report
  const auto root = fs::canonical(from.folder, missing);
  for (const auto& name : from.files) {
    if (name.find('/') == name.npos) continue;
    const auto folder = fs::canonical((root / name).parent_path(), missing);
    const auto [end, ignored] = std::mismatch(root.begin(), root.end(), folder.begin(), folder.end());
    if (missing || end == root.end()) continue;
    fail(ExitCode::bad_data, "{}: the index names {}, but its folder is a link out of this one", from.folder,
         printable(name));
  }
}

bool half_of_a_tie(const std::string& name) noexcept {
  return name.ends_with("lm_head.weight") || name.ends_with("embed_tokens.weight");
}

/// Rule I5: drops what the index does not list, and refuses other differences.
void compare_with_index(const CheckpointFiles& from, std::vector<Found>& found, std::vector<std::string>& notes) {
  std::vector<std::string> differences, unlisted;
  std::uint64_t bytes = 0;
  bool tie_written = false, tie_taken = false;
  WeightMap missing = from.index->weight_map;
  std::erase_if(found, [&](const Found& tensor) {
    const auto& file = from.files[tensor.file];
    const auto listed = from.index->weight_map.find(tensor.info.name);
    if (listed == from.index->weight_map.end()) {
      unlisted.push_back(printable(tensor.info.name));
      return true;
    }
    if (listed->second != file) {
      differences.push_back(
          fmt::format("{} holds {}, which the index says is in {}", file, printable(tensor.info.name), listed->second));
    } else {
      missing.erase(tensor.info.name);
    }
    tie_written = tie_written || half_of_a_tie(tensor.info.name);
    bytes += tensor.size;
    return false;
  });
  for (const auto& [name, file] : missing) {
    if (half_of_a_tie(name) && tie_written) {
      notes.push_back(fmt::format("the index lists {}, which was not written: taken as tied", printable(name)));
      tie_taken = true;
      continue;
    }
    differences.push_back(fmt::format("{} does not hold {}, which the index says is there", file, printable(name)));
  }
  if (!differences.empty()) {
    throw Error(
        ExitCode::bad_data,
        fmt::format("{}/{} and the shards disagree:\n  {}", from.folder, from.name, list_lines(differences, 50)),
        "get the checkpoint again, index and shards from one place");
  }
  if (!unlisted.empty()) {
    notes.push_back(fmt::format("{} tensors that the index does not list were not read, the first is {}",
                                unlisted.size(), unlisted.front()));
  } else if (!tie_taken && from.index->total_bytes && *from.index->total_bytes != bytes) {
    notes.push_back(fmt::format("warning: total_size in {} is {}, but the tensors have {} bytes", from.name,
                                *from.index->total_bytes, bytes));
  }
}

}  // namespace

Checkpoint::Checkpoint(const CheckpointFiles& from) : folder_(from.folder) {
  std::vector<Found> found;
  if (from.index) check_folders(from);
  for (const auto& name : from.files) add_file(fs::path(from.folder) / name, files_, found);
  if (from.index) compare_with_index(from, found, notes_);

  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.info.name < b.info.name; });
  const auto twice = std::adjacent_find(found.begin(), found.end(),
                                        [](const Found& a, const Found& b) { return a.info.name == b.info.name; });
  if (twice != found.end()) {
    throw Error(ExitCode::bad_data,
                fmt::format("{}: {} is in {} and in {}", from.folder, printable(twice->info.name),
                            from.files[twice->file], from.files[std::next(twice)->file]),
                "get the checkpoint again, all shards from one place");
  }
  for (auto& [info, file, offset, size] : found) {
    tensors_.push_back(std::move(info));
    places_.push_back({file, offset, size});
  }
}

std::string Checkpoint::difference(const Checkpoint& a, const Checkpoint& b) {
  const auto [in_a, in_b] =
      std::mismatch(a.tensors().begin(), a.tensors().end(), b.tensors().begin(), b.tensors().end());
  if (in_a != a.tensors().end() || in_b != b.tensors().end()) {
    const bool from_a = in_b == b.tensors().end() || (in_a != a.tensors().end() && in_a->name <= in_b->name);
    return fmt::format("they differ in {}", printable((from_a ? *in_a : *in_b).name));
  }
  struct Block {
    std::size_t tensor;
    std::uint64_t offset, size;
  };
  std::vector<Block> blocks;
  for (std::size_t i = 0; i < a.tensors().size(); ++i) {
    const auto size = a.places_[i].size;
    for (std::uint64_t at = 0; at < size; at += block_bytes)
      blocks.push_back({i, at, std::min(block_bytes, size - at)});
  }
  std::atomic<std::size_t> first{blocks.size()};
  parallel_for(blocks.size(), available_cores(), [&](std::size_t i) {
    if (i > first) return;
    std::vector<std::byte> of_a(blocks[i].size), of_b(blocks[i].size);
    a.read(blocks[i].tensor, blocks[i].offset, of_a);
    b.read(blocks[i].tensor, blocks[i].offset, of_b);
    if (of_a == of_b) return;
    for (auto known = first.load(); i < known && !first.compare_exchange_weak(known, i);) {
    }
  });
  return first == blocks.size() ? ""
                                : fmt::format("they differ in {}", printable(a.tensors()[blocks[first].tensor].name));
}

Checkpoint Checkpoint::open(const std::string& path) {
  const auto search = find_checkpoint(path);
  const auto& chosen = search.candidates.front();
  const auto open_one = [&](const CheckpointFiles& files) {
    try {
      return Checkpoint(files);
    } catch (const Error& error) {
      if (search.candidates.size() == 1) throw;
      refuse_two_checkpoints(chosen, &files == &chosen ? search.candidates[1] : files,
                             fmt::format("{} cannot be read: {}", files.name, error.what()));
    }
  };
  auto result = open_one(chosen);
  auto& notes = result.notes_;
  notes.insert(notes.begin(), search.notes.begin(), search.notes.end());
  for (std::size_t i = 1; i < search.candidates.size(); ++i) {
    const auto& other = search.candidates[i];
    const auto beside = open_one(other);
    if (beside.find("tok_embeddings.weight") >= 0) {
      notes.push_back(fmt::format("{} beside it has names of another format and was not used", other.name));
    } else if (const auto why = difference(result, beside); !why.empty()) {
      refuse_two_checkpoints(chosen, other, why);
    } else {
      notes.push_back(fmt::format("{} beside it holds the same", other.name));
    }
  }
  result.path_ = path;
  return result;
}

std::ptrdiff_t Checkpoint::find(std::string_view name) const noexcept {
  const auto at = std::ranges::lower_bound(tensors_, name, {}, &TensorInfo::name);
  return at != tensors_.end() && at->name == name ? at - tensors_.begin() : -1;
}

void Checkpoint::read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  WEIGHTCAST_EXPECTS(index < places_.size());
  const auto& place = places_[index];
  WEIGHTCAST_EXPECTS(offset <= place.size && destination.size() <= place.size - offset);
  files_[place.file].read(place.offset + offset, destination);
}

}  // namespace weightcast
