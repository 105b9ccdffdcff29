#include "weightcast/core/error.hpp"

#include <new>

namespace weightcast {

std::string_view describe(ExitCode code) noexcept {
  switch (code) {
    case ExitCode::ok: return "ok";
    case ExitCode::usage: return "wrong usage";
    case ExitCode::bad_data: return "bad input data";
    case ExitCode::no_input: return "input missing";
    case ExitCode::unavailable: return "peer, MPI or NCCL failure";
    case ExitCode::internal: return "internal error";
    case ExitCode::cant_create: return "cannot create output";
    case ExitCode::io_error: return "cannot write output";
    case ExitCode::busy: return "busy, try again";
    case ExitCode::mismatch: return "verification mismatch";
    case ExitCode::config: return "bad configuration";
    case ExitCode::deadline: return "deadline passed";
  }
  return "unknown";
}

Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ExitCode::unavailable, "out of memory", "use a larger machine, a larger tp, or --commit in-place");
  } catch (const std::exception& error) {
    return Error(ExitCode::internal, error.what());
  } catch (...) {
    return Error(ExitCode::internal, "an exception of unknown type");
  }
}

}  // namespace weightcast
