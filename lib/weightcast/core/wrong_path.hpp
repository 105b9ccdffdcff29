#pragma once

#include <string>

#include "weightcast/core/error.hpp"

namespace weightcast {

/// Error(no_input): the input `path` cannot be opened for the reason `error` (an errno). Its hint knows what people
/// give in place of a path: a name on the Hugging Face Hub, an address, what a shell did not expand, a slip in one of
/// its parts. Looks at folders on the way, at most.
Error cannot_open(const std::string& path, int error);

/// Throws cannot_open() unless something is there.
void expect_there(const std::string& path);

/// The hint of cannot_open() for what is not there.
std::string hint_for_missing(const std::string& path);

}  // namespace weightcast
