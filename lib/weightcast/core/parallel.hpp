#pragma once

#include <cstddef>
#include <functional>

namespace weightcast {

/// Runs task(0) ... task(count - 1) on up to `threads` threads, the caller's included; each index once, in no fixed
/// order. Returns when all are done; the first exception is rethrown after the others have finished (later tasks are
/// not begun).
void parallel_for(std::size_t count, std::size_t threads, const std::function<void(std::size_t)>& task);

/// Cores that this process may run on (its affinity mask), at least 1.
std::size_t available_cores() noexcept;

}  // namespace weightcast
