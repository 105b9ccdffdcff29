#include "weightcast/tensor/dtype.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>

namespace weightcast {
namespace {

struct Row {
  std::string_view name;
  int bits;
};

// In the order of the enumeration.
constexpr std::array<Row, dtype_count> rows = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

template <typename T>
T load(const void* element) noexcept {
  T value;
  std::memcpy(&value, element, sizeof value);
  return value;
}

float half_to_float(std::uint16_t half) noexcept {
  const float sign = (half & 0x8000) != 0 ? -1.0f : 1.0f;
  const int exponent = (half >> 10) & 31;
  const auto fraction = static_cast<float>(half & 1023);
  if (exponent == 31) return fraction != 0 ? std::nanf("") : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
}

float e4m3_to_float(std::uint8_t bits) noexcept {
  const float sign = (bits & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = (bits >> 3) & 15;
  const auto fraction = static_cast<float>(bits & 7);
  if ((bits & 0x7f) == 0x7f) return std::copysign(std::nanf(""), sign);
  return sign * (exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(fraction + 8, exponent - 10));
}

}  // namespace

int bits(DType dtype) noexcept {
  return rows[static_cast<std::size_t>(dtype)].bits;
}

std::string_view name(DType dtype) noexcept {
  return rows[static_cast<std::size_t>(dtype)].name;
}

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

std::optional<float> to_float(DType dtype, const void* element) noexcept {
  switch (dtype) {
    case DType::BF16: return std::bit_cast<float>(static_cast<std::uint32_t>(load<std::uint16_t>(element)) << 16);
    case DType::F16: return half_to_float(load<std::uint16_t>(element));
    case DType::F8_E4M3: return e4m3_to_float(load<std::uint8_t>(element));
    case DType::F8_E5M2: return half_to_float(static_cast<std::uint16_t>(load<std::uint8_t>(element) << 8));
    case DType::F32: return load<float>(element);
    case DType::F64: return static_cast<float>(load<double>(element));
    default: return std::nullopt;
  }
}

}  // namespace weightcast
