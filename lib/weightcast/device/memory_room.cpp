#include "weightcast/device/memory_room.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "weightcast/core/bytes.hpp"

namespace weightcast {
namespace {

std::uint64_t kept_bytes(std::uint64_t limit_bytes) noexcept {
  return std::min(512 * mebibyte, limit_bytes / 16);
}

/// The number that `text` begins with, after blanks; nothing for "max" and other words.
std::optional<std::uint64_t> leading_number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

/// The number in a file that holds nothing else.
std::optional<std::uint64_t> number_in(const std::string& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return leading_number(line);
}

/// The sum of the numbers behind `keys`, each at the beginning of a line; nothing when none of them is there.
std::optional<std::uint64_t> sum_of(const std::string& path, std::initializer_list<std::string_view> keys) {
  std::optional<std::uint64_t> sum;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    for (const auto key : keys) {
      if (!line.starts_with(key)) continue;
      if (const auto number = leading_number(std::string_view(line).substr(key.size())))
        sum = sum.value_or(0) + *number;
    }
  }
  return sum;
}

/// A path as mountinfo writes it: blanks and backslashes are octal (\040).
std::string unescape(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    int code = 0;
    const char* const digits = text.data() + i + 1;
    if (text[i] == '\\' && i + 3 < text.size() && std::from_chars(digits, digits + 3, code, 8).ptr == digits + 3) {
      result += static_cast<char>(code);
      i += 3;
    } else {
      result += text[i];
    }
  }
  return result;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

/// Whether a comma-separated list has this item.
bool lists(const std::string& text, std::string_view item) {
  const auto parts = split(text, ',');
  return std::find(parts.begin(), parts.end(), item) != parts.end();
}

/// The paths of this process's groups: of version 2, and of the memory controller of version 1.
struct GroupPaths {
  std::optional<std::string> unified, memory;
};

GroupPaths own_groups(const std::string& root) {
  GroupPaths paths;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // like 4:memory:/docker/1f and 0::/user.slice
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const auto controllers = line.substr(first + 1, second - first - 1);
    if (controllers.empty()) paths.unified = line.substr(second + 1);
    if (lists(controllers, "memory")) paths.memory = line.substr(second + 1);
  }
  return paths;
}

/// Where the group `path` lies below the mount point of the group `mounted`; nothing when it is not there. Both are
/// relative to the root of our namespace: a mounted group above it reads /.., and how to get from there to us is not
/// told, so the mount point is the lowest level that can be seen.
std::optional<std::string> below(const std::string& path, const std::string& mounted) {
  const bool above = mounted.starts_with("/..") && mounted.find_first_not_of("/.") == std::string::npos;
  if (path == mounted || above) return std::string();
  const auto& prefix = mounted == "/" ? std::string() : mounted;
  if (path.starts_with("/..") || !path.starts_with(prefix + "/")) return std::nullopt;
  return path.substr(prefix.size());
}

/// The limit of one group, with what is in use of it. Memory above memory.high is not refused, but so slow that a job
/// would seem to hang.
std::optional<MemoryRoom> room_of_group(const std::string& folder, bool unified) {
  const auto stat = folder + "/memory.stat";
  std::optional<std::uint64_t> limit;
  const auto tighten = [&](std::optional<std::uint64_t> other) {
    if (other) limit = std::min(limit.value_or(UINT64_MAX), *other);
  };
  if (unified) {
    for (const auto* name : {"/memory.max", "/memory.high"}) tighten(number_in(folder + name));
  } else {
    tighten(number_in(folder + "/memory.limit_in_bytes"));
    tighten(sum_of(stat, {"hierarchical_memory_limit "}));  // also of groups that are out of sight
  }
  const auto used = number_in(folder + (unified ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !used) return std::nullopt;
  const auto cache = unified ? sum_of(stat, {"active_file ", "inactive_file ", "slab_reclaimable "})
                             : sum_of(stat, {"total_active_file ", "total_inactive_file "});
  const auto kept = *used - std::min(*used, cache.value_or(0));
  return MemoryRoom{*limit, *limit - std::min(*limit, kept), folder, false};
}

}  // namespace

std::uint64_t MemoryRoom::spare_bytes() const noexcept {
  return free_bytes - std::min(free_bytes, kept_bytes(limit_bytes));
}

std::string MemoryRoom::describe() const {
  const auto kept = fmt::format("{} are kept for other things", format_size(kept_bytes(limit_bytes)));
  if (group.empty())
    return fmt::format("the machine has {} of {} left, and {}", format_size(free_bytes), format_size(limit_bytes),
                       kept);
  return fmt::format("the control group {} allows {}, {} are in use, and {}", printable(group),
                     format_size(limit_bytes), format_size(limit_bytes - free_bytes), kept);
}

MemoryRoom memory_room(const std::string& root) {
  MemoryRoom tightest;
  const auto meminfo = root + "/proc/meminfo";
  const auto total = sum_of(meminfo, {"MemTotal:"}), available = sum_of(meminfo, {"MemAvailable:"});
  // A kernel that has memory in zones has all of it from the start. gVisor's has not, and its MemTotal follows the use.
  const bool grows = !std::filesystem::exists(root + "/proc/zoneinfo");
  if (total && available) tightest = {*total * kibibyte, *available * kibibyte, {}, grows};

  const auto groups = own_groups(root);
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line;
       std::getline(mounts, line);) {  // like 35 31 0:32 /docker/1f /sys/fs/cgroup rw - cgroup2 none rw
    const auto separator = line.find(" - ");
    if (separator == std::string::npos) continue;
    const auto place = split(line.substr(0, separator), ' '), kind = split(line.substr(separator + 3), ' ');
    if (place.size() < 5 || kind.size() < 3) continue;
    const bool unified = kind[0] == "cgroup2";
    if (!unified && !(kind[0] == "cgroup" && lists(kind[2], "memory"))) continue;
    const auto& path = unified ? groups.unified : groups.memory;
    if (!path) continue;
    auto group = below(*path, unescape(place[3]));
    while (group) {
      const auto room = room_of_group(root + unescape(place[4]) + *group, unified);
      if (room && room->spare_bytes() < tightest.spare_bytes()) tightest = *room;
      if (group->empty()) break;
      group->resize(group->rfind('/'));
    }
  }
  return tightest;
}

}  // namespace weightcast
