#include "weightcast/core/wrong_path.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/near_miss.hpp"

namespace weightcast {
namespace fs = std::filesystem;
namespace {

std::string download_of(std::string_view repository) {
  return fmt::format("hf download {} --local-dir FOLDER, and name that FOLDER", printable(repository));
}

/// What comes behind huggingface.co/ in an address, up to the name of the repository; or nothing.
std::string repository_in(std::string_view address) {
  constexpr std::string_view hub = "huggingface.co/";
  const auto at = address.find(hub);
  if (at == address.npos) return {};
  auto name = address.substr(at + hub.size());
  if (const auto slash = name.find('/'); slash != name.npos) name = name.substr(0, name.find('/', slash + 1));
  return std::string(name);
}

/// Like org/name, with what names on the Hub are made of.
bool like_repository(std::string_view path) {
  const auto slash = path.find('/');
  if (slash == path.npos || slash == 0 || slash + 1 == path.size() || path.starts_with('.')) return false;
  return std::ranges::count(path, '/') == 1 && std::ranges::all_of(path, [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
         });
}

/// How far a path leads: what is there of it, the first part that is not, and what follows that.
struct Way {
  fs::path there, missing, rest;
};

Way way_of(const std::string& path) {
  Way way;
  std::error_code ignored;
  for (const auto& part : fs::path(path)) {
    if (!way.missing.empty()) {
      way.rest /= part;
    } else if (fs::exists(way.there / part, ignored)) {
      way.there /= part;
    } else {
      way.missing = part;
    }
  }
  return way;
}

/// The path with the first part that is not there corrected, when something of nearly that name is.
std::string corrected(const Way& way) {
  constexpr std::size_t most_names = 10'000;
  std::set<std::string> names;
  std::error_code ignored;
  for (fs::directory_iterator entry(way.there.empty() ? "." : way.there, ignored), end;
       !ignored && entry != end && names.size() < most_names; entry.increment(ignored))
    names.insert(entry->path().filename().string());
  const auto name = near_miss(way.missing.string(), names);
  if (!name) return {};
  const auto whole = way.there / *name / way.rest;
  return (!way.rest.empty() && fs::exists(whole, ignored) ? whole : way.there / *name).string();
}

}  // namespace

std::string hint_for_missing(const std::string& path) {
  if (path.empty()) return "name a file or a folder";
  if (path.find("://") != path.npos) {
    const auto repository = repository_in(path);
    return "an address is not a path: download it first" + (repository.empty() ? "" : ": " + download_of(repository));
  }
  if (path.starts_with('~'))
    return "the shell has not expanded ~ (it does not behind =): write $HOME, or the whole path";
  if (path.find('$') != path.npos) return "the shell has not expanded the $ in it: write the whole path";
  if (path.starts_with(' ') || path.ends_with(' ')) return "there is a blank at an end of the name: leave it out";
  const auto way = way_of(path);
  if (const auto meant = corrected(way); !meant.empty()) return fmt::format("did you mean {}?", printable(meant));
  if (way.there.empty() && like_repository(path))
    return "if it is a model on the Hugging Face Hub: " + download_of(path);
  return fmt::format("check the path: there is no {} in {}", printable(way.missing.string()),
                     way.there.empty() ? "this folder" : printable(way.there.string()));
}

Error cannot_open(const std::string& path, int error) {
  const auto shown = printable(path, 1000);
  if (error == EACCES) {
    return Error(ExitCode::no_input, fmt::format("cannot open {}: {}", shown, std::strerror(error)),
                 fmt::format("user {} needs the right to read it, and to enter the folders above it: namei -l {}",
                             ::geteuid(), shown));
  }
  std::error_code ignored;
  if (error == ENOENT && fs::is_symlink(path, ignored)) {
    return Error(ExitCode::no_input,
                 fmt::format("{} is a link to {}, which is not there", shown, fs::read_symlink(path, ignored).string()),
                 "download it again, or copy what it leads to along with it (cp -L)");
  }
  const bool missing = error == ENOENT || error == ENOTDIR;
  return Error(ExitCode::no_input, fmt::format("cannot open {}: {}", shown, std::strerror(error)),
               missing           ? hint_for_missing(path)
               : error == EMFILE ? "raise the limit on open files (ulimit -n)"
                                 : "check the path");
}

void expect_there(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw cannot_open(path, errno);
}

}  // namespace weightcast
