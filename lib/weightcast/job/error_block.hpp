#pragma once

#include <string>

#include "weightcast/core/error.hpp"

namespace weightcast {

/// The block that ends a failed run on stderr: what failed (with file, offset or parameter), the kind of error and the
/// exit status, on which rank, host, role and stage as far as known, and what to do about it. Control bytes are
/// escaped.
std::string error_block(const Error& error, int exit_status);

}  // namespace weightcast
