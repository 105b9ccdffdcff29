#pragma once

#include <cstddef>
#include <optional>

#include "weightcast/model/parameter_rules.hpp"

/// Which scales go with which part of a matrix that engines hold in fp8. Pure.
namespace weightcast {

/// The parameter that has the scales of this one (of its section of the tensor); nothing where it is no matrix that is
/// quantised.
std::optional<std::size_t> scales_parameter(const Model& model, std::size_t parameter);

/// The scales of a rectangle of a matrix, which is not empty, in elements of their own tensor. Nothing where it has
/// only a part of what shares a scale: of a block of 128 x 128, or of a row.
std::optional<Slice> scales_of(Quantization quantization, const TensorInfo& matrix, const Slice& slice) noexcept;

}  // namespace weightcast
