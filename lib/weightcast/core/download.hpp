#pragma once

#include <optional>
#include <string>
#include <string_view>

/// What people have on disk after a download: a cache of the Hugging Face Hub, or something else than they wanted.
namespace weightcast {

/// The snapshot that a repository of a Hugging Face Hub cache (a folder with `snapshots/` and, mostly, `refs/`) stands
/// for: the one that `refs/main` names, otherwise the only one. Nothing when `folder` is not such a repository, or has
/// weights or a config of its own. Error(no_input) when that snapshot is not there, or when there are several and no
/// `refs/main`: they are listed.
std::optional<std::string> hub_snapshot(const std::string& folder);

/// What people find in place of a file of weights or of JSON when a download went wrong or another format was meant: a
/// Git LFS pointer, a web page, a pickle of PyTorch, a GGUF or HDF5 file. Throws Error(bad_data) that says of the file
/// `path` which of these begins with `start` (a few hundred bytes are enough), and what to do; otherwise does nothing.
void refuse_foreign_content(const std::string& path, std::string_view start);

}  // namespace weightcast
