#pragma once

#include <memory>
#include <string>
#include <vector>

#include "weightcast/core/temporary.hpp"

namespace weightcast {

/// The names of the memory that the ranks of a machine share: Open MPI has files in /dev/shm for it, and a rank that is
/// killed cannot remove its own. Without names the memory goes with the last process.
class SharedNames {
 public:
  /// Removes the names. Every rank must have been in a barrier of all: by then each has mapped what the others share.
  void remove();
  /// Gives them back, empty, for MPI_Finalize, which complains when it does not find its own. A signal that ends the
  /// process removes them, and so does the end of this object, which must come after MPI_Finalize.
  void restore();

 private:
  std::vector<std::string> paths_;
  std::vector<std::unique_ptr<Unfinished>> restored_;
};

}  // namespace weightcast
