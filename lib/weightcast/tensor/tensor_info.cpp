#include "weightcast/tensor/tensor_info.hpp"

#include <fmt/ranges.h>

#include "weightcast/core/bytes.hpp"

namespace weightcast {

std::optional<std::uint64_t> TensorInfo::elements() const noexcept {
  std::optional<std::uint64_t> count = 1;
  for (const auto extent : shape) count = count ? checked_multiply(*count, extent) : std::nullopt;
  return count;
}

std::optional<std::uint64_t> TensorInfo::size_bytes() const noexcept {
  const auto count = elements();
  const auto size = count ? checked_multiply(*count, static_cast<std::uint64_t>(bits(dtype))) : std::nullopt;
  if (!size || *size % 8 != 0) return std::nullopt;
  return *size / 8;
}

std::string TensorInfo::describe() const {
  return fmt::format("{} [{}]", weightcast::name(dtype), fmt::join(shape, ", "));
}

}  // namespace weightcast
