#include "weightcast/device/narrow_float.hpp"

#include <cstring>

namespace weightcast {
namespace {

template <NarrowFloat to>
void narrow_all(std::byte* __restrict destination, const std::byte* __restrict source, std::uint64_t count) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, source + 4 * i, 4);
    const std::uint16_t narrowed = narrow(to, bits);
    std::memcpy(destination + 2 * i, &narrowed, 2);
  }
}

}  // namespace

void narrow(NarrowFloat to, std::byte* destination, const std::byte* source, std::uint64_t count) noexcept {
  to == NarrowFloat::bf16 ? narrow_all<NarrowFloat::bf16>(destination, source, count)
                          : narrow_all<NarrowFloat::f16>(destination, source, count);
}

}  // namespace weightcast
