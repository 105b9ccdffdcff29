#pragma once

#include <cstddef>
#include <optional>

#include "weightcast/core/function_ref.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {

/// All cores of this process, for work that may fail. Threads are started by the first run() and kept.
class FillThreads {
 public:
  FillThreads() : count_(available_cores()) {}

  std::size_t count() const noexcept { return count_; }
  /// Calls `task(index, thread)` for [0, count), each once, in no fixed order, with threads counted from 0. Returns
  /// when all are done; rethrows the first exception, after which no more tasks are begun. One run() at a time.
  void run(std::size_t count, FunctionRef<void(std::size_t index, std::size_t thread)> task);

 private:
  std::size_t count_;
  std::optional<Workers> workers_;
};

}  // namespace weightcast
