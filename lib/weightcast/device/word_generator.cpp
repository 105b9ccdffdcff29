#include "weightcast/device/word_generator.hpp"

#include <algorithm>
#include <cstring>

namespace weightcast {

void generate(const WordGenerator& words, std::uint64_t offset, std::span<std::byte> destination) noexcept {
  if (destination.empty()) return;
  // A word that the range cuts at its start or end is made whole and copied in part.
  const auto partial = [&](std::size_t count) {
    const auto value = words.word(offset / 8) >> (8 * (offset % 8));
    std::memcpy(destination.data(), &value, count);
    destination = destination.subspan(count);
    offset += count;
  };
  if (offset % 8 != 0) partial(std::min<std::size_t>(destination.size(), 8 - offset % 8));
  for (std::size_t i = 0; i < destination.size() / 8; ++i) {
    const auto value = words.word(offset / 8 + i);
    std::memcpy(destination.data() + 8 * i, &value, 8);
  }
  const auto made = destination.size() / 8 * 8;
  destination = destination.subspan(made);
  offset += made;
  if (!destination.empty()) partial(destination.size());
}

}  // namespace weightcast
