#pragma once

#include <cstdint>

#include "weightcast/device/host_device.hpp"

/// The generator SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), for host and
/// device code alike.
namespace weightcast {

/// What its state grows by: 2^64 / golden ratio.
inline constexpr std::uint64_t splitmix_step = 0x9e3779b97f4a7c15ULL;

/// Its output for a state that has grown.
WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t splitmix(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace weightcast
