#pragma once

#include <optional>
#include <string>

/// What people have on disk after a download: a cache of the Hugging Face Hub.
namespace weightcast {

/// The snapshot that a repository of a Hugging Face Hub cache (a folder with `snapshots/` and, mostly, `refs/`) stands
/// for: the one that `refs/main` names, otherwise the only one. Nothing when `folder` is not such a repository, or has
/// weights or a config of its own. Error(no_input) when that snapshot is not there, or none is, or when there are
/// several and no `refs/main`: they are listed.
std::optional<std::string> hub_snapshot(const std::string& folder);

}  // namespace weightcast
