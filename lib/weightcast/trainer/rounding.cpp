#include "weightcast/trainer/rounding.hpp"

namespace weightcast {

std::optional<Rounding> rounding_of(DType given, DType wire) noexcept {
  if (wire == DType::BF16 && given == DType::F32) return Rounding{NarrowFloat::bf16, WideFloat::f32};
  if (wire == DType::BF16 && given == DType::F16) return Rounding{NarrowFloat::bf16, WideFloat::f16};
  if (wire == DType::F16 && given == DType::F32) return Rounding{NarrowFloat::f16, WideFloat::f32};
  if (wire == DType::F16 && given == DType::BF16) return Rounding{NarrowFloat::f16, WideFloat::bf16};
  return std::nullopt;
}

}  // namespace weightcast
