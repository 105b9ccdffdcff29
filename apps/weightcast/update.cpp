#include "update_options.hpp"

namespace weightcast {

int run_update(const UpdateOptions& /*options*/) {
  fail(ExitCode::internal, "update is not there yet");
}

}  // namespace weightcast
