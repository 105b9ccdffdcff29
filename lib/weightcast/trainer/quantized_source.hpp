#pragma once

#include <memory>

#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

/// Weights as the engines of `quantized` hold them: matrices of linear layers rounded to F8_E4M3 with their scales
/// (device/quantize.md), everything else as it is. `weights` are those of `plain`, which is the same model without
/// quantization; the models must outlive it. A read takes whole bands of rows that share scales. The digests that
/// `weights` claim are of other bytes, so it claims none.
std::unique_ptr<WeightSource> quantized_source(const Model& quantized, const Model& plain,
                                               std::unique_ptr<WeightSource> weights);

}  // namespace weightcast
