#include "weightcast/core/foreign_content.hpp"

#include <algorithm>
#include <array>
#include <cctype>

#include "weightcast/core/error.hpp"

namespace weightcast {
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
