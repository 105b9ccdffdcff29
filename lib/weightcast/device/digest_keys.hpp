#pragma once

#include <cstdint>

#include "weightcast/device/host_device.hpp"
#include "weightcast/device/splitmix.hpp"

/// The constants of the digest (digest.md), for host and device code alike: no containers, no intrinsics.
namespace weightcast::digest_keys {

/// Words of 32 bits that share an outer factor: 1 KiB of a parameter.
inline constexpr std::uint64_t block_words = 256;
/// Keys stored behind the last one, so that a vector load of keys may begin at any of them. Never multiplied with data.
inline constexpr std::uint64_t spare_keys = 16;

/// Output of the SplitMix64 generator for the state `x`.
WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t splitmix64(std::uint64_t x) noexcept {
  return splitmix(x + splitmix_step);
}

/// K_lane[j], j < 256: the odd inner factor of word j of every block. `lane` is 0 or 1.
WEIGHTCAST_HOST_DEVICE constexpr std::uint32_t word_key(std::uint64_t lane, std::uint64_t j) noexcept {
  return static_cast<std::uint32_t>(splitmix64(0x7765696768746361ULL + 256 * lane + j) >> 32) | 1U;
}

/// H_lane(block): the odd outer factor of a block.
WEIGHTCAST_HOST_DEVICE constexpr std::uint64_t block_factor(std::uint64_t lane, std::uint64_t block) noexcept {
  return splitmix64(0x73742d6469676573ULL + 2 * block + lane) | 1U;
}

/// word_key() of both lanes as a table; entries from block_words on are zero.
struct KeyTable {
  alignas(64) std::uint32_t lane[2][block_words + spare_keys] = {};
};
constexpr KeyTable make_key_table() noexcept {
  KeyTable table;
  for (std::uint64_t lane = 0; lane < 2; ++lane) {
    for (std::uint64_t j = 0; j < block_words; ++j) table.lane[lane][j] = word_key(lane, j);
  }
  return table;
}
inline constexpr KeyTable key_table = make_key_table();

}  // namespace weightcast::digest_keys
