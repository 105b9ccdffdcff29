#include "weightcast/device/narrow_float.hpp"

#include <cstring>

namespace weightcast {
namespace {

template <NarrowFloat to, WideFloat from>
void narrow_all(std::byte* __restrict destination, const std::byte* __restrict source, std::uint64_t count) noexcept {
  constexpr auto width = width_bytes(from);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, source + width * i, width);
    const std::uint16_t narrowed = narrow(to, widen(from, bits));
    std::memcpy(destination + 2 * i, &narrowed, 2);
  }
}

template <NarrowFloat to>
void narrow_all(std::byte* destination, const std::byte* source, std::uint64_t count, WideFloat from) noexcept {
  switch (from) {
    case WideFloat::f32: return narrow_all<to, WideFloat::f32>(destination, source, count);
    case WideFloat::bf16: return narrow_all<to, WideFloat::bf16>(destination, source, count);
    case WideFloat::f16: return narrow_all<to, WideFloat::f16>(destination, source, count);
  }
}

}  // namespace

void narrow(NarrowFloat to, std::byte* destination, const std::byte* source, std::uint64_t count,
            WideFloat from) noexcept {
  to == NarrowFloat::bf16 ? narrow_all<NarrowFloat::bf16>(destination, source, count, from)
                          : narrow_all<NarrowFloat::f16>(destination, source, count, from);
}

}  // namespace weightcast
