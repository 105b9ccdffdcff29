#pragma once

#include <optional>

#include "weightcast/device/narrow_float.hpp"
#include "weightcast/tensor/dtype.hpp"

namespace weightcast {

/// How elements of type `given` become those of a parameter of type `wire`, to nearest, ties to even: F32 and F16 for
/// BF16, F32 and BF16 for F16. Nothing for any other pair: equal ones are copied, and the others are not taken.
std::optional<Rounding> rounding_of(DType given, DType wire) noexcept;

}  // namespace weightcast
