#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// What people find in place of a file of weights or of JSON when a download went wrong or another format was meant: a
/// Git LFS pointer, a web page, a pickle of PyTorch, a GGUF or HDF5 file. Throws Error(bad_data) that says of the file
/// `path` which of these begins with `start` (a few hundred bytes are enough), and what to do; otherwise does nothing.
void refuse_foreign_content(const std::string& path, std::string_view start);

}  // namespace weightcast
