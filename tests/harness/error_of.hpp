#pragma once

#include <gtest/gtest.h>

#include "weightcast/core/error.hpp"
#include "weightcast/core/function_ref.hpp"

namespace weightcast::harness {

/// What `call` throws; a test failure and code `ok` when it throws nothing.
inline Error error_of(FunctionRef<void()> call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return {ExitCode::ok, "nothing was thrown"};
}

}  // namespace weightcast::harness
