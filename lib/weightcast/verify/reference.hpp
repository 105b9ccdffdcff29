#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <type_traits>
#include <utility>

#include "weightcast/device/word_generator.hpp"

namespace weightcast {

/// What reads bytes [offset, offset + destination.size()) of a parameter from a reference.
using ReadReference =
    std::function<void(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination)>;

struct Reference;
template <typename Read>
concept IsReader =
    !std::is_same_v<std::remove_cvref_t<Read>, Reference> && std::constructible_from<ReadReference, Read>;

/// Weights as an independent reader has them, to fill slots from and to hold them against. All of it thread-safe.
struct Reference {
  ReadReference read;
  std::span<const WordGenerator> generators;  ///< by parameter, of the same bytes; empty unless they are made up
  std::function<void()> look;                 ///< called between two parts and while a GPU works; throws to give up

  template <IsReader Read>
  Reference(Read&& reader, std::span<const WordGenerator> made = {},  // NOLINT(google-explicit-constructor): lambdas
            std::function<void()> attention = {})
      : read(std::forward<Read>(reader)), generators(made), look(std::move(attention)) {}

  void look_around() const {
    if (look) look();
  }
};

}  // namespace weightcast
