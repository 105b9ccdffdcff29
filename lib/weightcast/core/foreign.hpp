#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>

/// What people have in place of safetensors files: weights in other formats, and what a download that went wrong has
/// left.
namespace weightcast {

/// "a GGUF file", and what to do to get safetensors of it.
struct Foreign {
  std::string_view what, hint;
};

/// What a file is that begins with `start` (512 bytes are enough), by the marks of formats that begin with some. Never
/// crashes, whatever the bytes are.
std::optional<Foreign> foreign_content(std::string_view start);

/// Whose checkpoint a folder without safetensors files is, by the names in it.
std::optional<Foreign> foreign_folder(const std::set<std::string>& names);

/// Error(bad_data) saying what the file `path` is, when foreign_content() knows it; otherwise does nothing.
void refuse_foreign_content(const std::string& path, std::string_view start);

/// What stands at the beginning of a file of no known kind: `the text "oops"`, `zeros`, `the bytes 7f 45 4c 46`.
std::string describe_start(std::string_view start);

}  // namespace weightcast
