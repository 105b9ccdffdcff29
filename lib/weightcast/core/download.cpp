#include "weightcast/core/download.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace fs = std::filesystem;
namespace {

struct Foreign {
  std::string_view start, what, hint;
};
constexpr std::string_view download_again = "download it again, logged in if the repository asks for it";
constexpr std::array<Foreign, 10> known{{
    {"version https://git-lfs", "a Git LFS pointer and not the file itself", "fetch the files: git lfs pull"},
    {"<!doctype html", "a web page", download_again},
    {"<html", "a web page", download_again},
    {"<?xml", "an XML answer of a server", download_again},
    {"invalid username or password", "an answer of a server that wanted a login", download_again},
    {"access to model ", "an answer of a server that wanted a login", download_again},
    {"entry not found", "an answer of a server that did not find the file", "check the name of the repository"},
    {"pk\x03\x04", "a zip archive, as torch.save() writes it", "save the model as safetensors"},
    {"gguf", "a GGUF file", "get the checkpoint as safetensors"},
    {"\x89hdf\r\n", "an HDF5 file", "name a checkpoint; of snapshots, verify and inspect take the path"},
}};

}  // namespace

std::optional<std::string> hub_snapshot(const std::string& folder) {
  std::error_code ignored;
  const fs::path root(folder), snapshots = root / "snapshots", main = root / "refs" / "main";
  if (!fs::is_directory(snapshots, ignored)) return std::nullopt;
  for (const auto& entry : fs::directory_iterator(root, ignored)) {
    const auto name = entry.path().filename().string();
    if (name.ends_with(".json") || name.ends_with(".safetensors")) return std::nullopt;
  }
  if (fs::exists(main, ignored)) {
    auto name = read_text_file(main, 1000);
    while (!name.empty() && (name.back() == '\n' || name.back() == '\r' || name.back() == ' ')) name.pop_back();
    const bool plain = !name.empty() && name.find('/') == name.npos && name.front() != '.';
    if (plain && fs::is_directory(snapshots / name, ignored)) return (snapshots / name).string();
    throw Error(ExitCode::no_input,
                fmt::format("{} names the snapshot \"{}\", which is not in {}", main.string(), printable(name),
                            snapshots.string()),
                "download the model again, or name the folder of a snapshot");
  }
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(snapshots, ignored)) {
    if (entry.is_directory(ignored)) names.push_back(entry.path().filename().string());
  }
  if (names.size() == 1) return (snapshots / names.front()).string();
  std::sort(names.begin(), names.end());
  for (auto& name : names) name = printable(name);
  throw Error(ExitCode::no_input,
              names.empty() ? fmt::format("{} has no snapshots", folder)
                            : fmt::format("{} has {} snapshots and no refs/main to choose by: {}", folder, names.size(),
                                          fmt::join(names, ", ")),
              names.empty() ? "download the model again" : "name the folder of one snapshot");
}

void refuse_foreign_content(const std::string& path, std::string_view start) {
  const auto blank = [](unsigned char c) { return std::isspace(c) != 0; };
  std::size_t first = start.starts_with("\xef\xbb\xbf") ? 3 : 0;
  while (first < start.size() && blank(static_cast<unsigned char>(start[first]))) ++first;
  std::string lower(start.substr(first, 64));
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const auto& foreign : known) {
    if (lower.starts_with(foreign.start))
      throw Error(ExitCode::bad_data, fmt::format("{} is {}", path, foreign.what), std::string(foreign.hint));
  }
}

}  // namespace weightcast
