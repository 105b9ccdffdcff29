#include "weightcast/core/download.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace fs = std::filesystem;

std::optional<std::string> hub_snapshot(const std::string& folder) {
  std::error_code ignored;
  const fs::path root(folder), snapshots = root / "snapshots", main = root / "refs" / "main";
  if (!fs::is_directory(snapshots, ignored)) {
    if (!fs::is_directory(root / "blobs", ignored) || !fs::is_directory(root / "refs", ignored)) return std::nullopt;
    throw Error(ExitCode::no_input, fmt::format("{} has no snapshots: its download did not end", folder),
                "download the model again");
  }
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

}  // namespace weightcast
