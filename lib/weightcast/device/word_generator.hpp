#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "weightcast/device/host_device.hpp"
#include "weightcast/device/splitmix.hpp"

/// Made-up weights, for host and device code alike.
namespace weightcast {

/// Makes a parameter's bytes of its words of 64 bits, little-endian, each from its index alone: so any range can be
/// made alone, anywhere. A word is random bits, some of them kept, and then something added. As it is, all are zero.
/// In a version that is another one with changes some bits are flipped: of each 16 bits the lowest, at random places.
struct WordGenerator {
  std::uint64_t start = 0, keep = 0, add = 0;
  /// Of 2^32 the chances that a bit of `flip` (0, 16, 32 and 48) is flipped, and where that is drawn from. 0: none is.
  std::uint64_t chance = 0, flip = 0, flip_start = 0;

  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t word(std::uint64_t index) const noexcept {
    const std::uint64_t made = (splitmix(start + index * splitmix_step) & keep) + add;
    return chance == 0 ? made : made ^ flips(index);
  }
  /// What the changes flip in a word.
  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t flips(std::uint64_t index) const noexcept {
    const std::uint64_t low = splitmix(flip_start + 2 * index * splitmix_step),
                        high = splitmix(flip_start + (2 * index + 1) * splitmix_step);
    return flip & (drawn(low & 0xffffffff) | drawn(low >> 32) << 16 | drawn(high & 0xffffffff) << 32 |
                   drawn(high >> 32) << 48);
  }
  /// 1 if a number of 32 bits says that its bit changes, else 0.
  WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t drawn(std::uint64_t number) const noexcept {
    return number < chance ? 1 : 0;
  }
  /// Of the parameter, at that offset.
  WEIGHTCAST_HOST_DEVICE constexpr std::uint8_t byte(std::uint64_t offset) const noexcept {
    return static_cast<std::uint8_t>(word(offset / 8) >> (8 * (offset % 8)));
  }
};

/// Makes bytes [offset, offset + destination.size()) on the host. For device memory: gpu::generate().
void generate(const WordGenerator& words, std::uint64_t offset, std::span<std::byte> destination) noexcept;

/// Rows of one parameter, in bytes, and how far apart they lie in some memory.
struct ParameterRows {
  std::uint64_t offset = 0, parameter_pitch = 0;  ///< of the first in the parameter, and from row to row there
  std::uint64_t pitch = 0;                        ///< from row to row in memory
  std::uint64_t row_bytes = 0, rows = 0;

  /// These rows, or one that is all of them where nothing lies between them.
  constexpr ParameterRows joined() const noexcept {
    const bool one = rows <= 1 || (parameter_pitch == row_bytes && pitch == row_bytes);
    if (!one) return *this;
    return {offset, row_bytes * rows, row_bytes * rows, row_bytes * rows, 1};
  }
};

}  // namespace weightcast
