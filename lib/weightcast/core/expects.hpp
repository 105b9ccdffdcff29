#pragma once

#include "weightcast/core/error.hpp"

/// States what a function relies on. A violation is a defect of weightcast and throws ExitCode::internal with the
/// place.
#define WEIGHTCAST_EXPECTS(condition)                                                                             \
  do {                                                                                                            \
    if (!(condition)) [[unlikely]]                                                                                \
      ::weightcast::fail(::weightcast::ExitCode::internal, "{}:{}: expected {}", __FILE__, __LINE__, #condition); \
  } while (false)
