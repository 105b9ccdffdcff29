#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace weightcast {

/// Element types of safetensors, by the names that the format uses (source: safetensors' `Dtype`). Some are narrower
/// than a byte; weightcast moves and compares bits and never interprets them, but for display.
enum class DType : std::uint8_t {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64,
};
inline constexpr int dtype_count = 22;

/// Width of one element in bits.
int bits(DType dtype) noexcept;
/// Of one that fills whole bytes.
inline std::uint64_t element_bytes(DType dtype) noexcept {
  return static_cast<std::uint64_t>(bits(dtype)) / 8;
}
/// "BF16", "F32", ...
std::string_view name(DType dtype) noexcept;
/// The type of that name, or nothing. Accepts the format's names only, with their case.
std::optional<DType> dtype_from_name(std::string_view name) noexcept;

/// The value of one element as float, for F8_E4M3 (torch's float8_e4m3fn), F8_E5M2, BF16, F16, F32 and F64; nothing for
/// the other types.
/// `element` points to bits(dtype)/8 bytes, little-endian, any alignment.
std::optional<float> to_float(DType dtype, const void* element) noexcept;

}  // namespace weightcast
