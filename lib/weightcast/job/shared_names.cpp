#include "weightcast/job/shared_names.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace weightcast {

void SharedNames::remove() {
  std::ifstream mapped("/proc/self/maps");
  for (std::string line; std::getline(mapped, line);) {
    const auto begin = std::min(line.find('/'), line.size());
    const auto end = std::min(line.rfind(" (deleted)"), line.size());  // another rank was faster
    auto path = line.substr(begin, end - begin);
    if (path.find("/vader_segment.") == std::string::npos) continue;
    ::unlink(path.c_str());
    if (std::ranges::find(paths_, path) == paths_.end()) paths_.push_back(std::move(path));
  }
}

void SharedNames::restore() {
  for (const auto& path : paths_) {
    restored_.push_back(std::make_unique<Unfinished>(path, false));
    UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  }
}

}  // namespace weightcast
