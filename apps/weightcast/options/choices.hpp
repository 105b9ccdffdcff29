#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/near_miss.hpp"
#include "weightcast/job/placement.hpp"
#include "weightcast/job/side.hpp"
#include "weightcast/model/parameter_rules.hpp"
#include "weightcast/plan/source_layout.hpp"
#include "weightcast/store/parameter_store.hpp"
#include "weightcast/transport/transport.hpp"

/// Options that are one of a few words. `choice_names` lists the words in the order of the enumerators.
namespace weightcast {

enum class TransportChoice { automatic, direct, nccl, mpi };
enum class VerifyChoice { none, sample, all };
enum class SwitchChoice { on, off };

template <typename Choice>
inline constexpr std::array<std::string_view, 0> choice_names{};
template <>
inline constexpr std::array<std::string_view, 3> choice_names<DeviceChoice>{"auto", "host", "cuda"};
template <>
inline constexpr std::array<std::string_view, 4> choice_names<TransportChoice>{"auto", "direct", "nccl", "mpi"};
template <>
inline constexpr std::array<std::string_view, 2> choice_names<Method>{"sharded", "broadcast"};
template <>
inline constexpr std::array<std::string_view, 2> choice_names<Granularity>{"model", "parameter"};
template <>
inline constexpr std::array<std::string_view, 2> choice_names<CommitMode>{"swap", "in-place"};
template <>
inline constexpr std::array<std::string_view, 3> choice_names<LayoutKind>{"whole", "fsdp", "tp"};  // no custom one
template <>
inline constexpr std::array<std::string_view, 3> choice_names<Quantization>{"none", "fp8-block", "fp8-channel"};
template <>
inline constexpr std::array<std::string_view, 3> choice_names<VerifyChoice>{"none", "sample", "all"};
template <>
inline constexpr std::array<std::string_view, 2> choice_names<SwitchChoice>{"on", "off"};

/// The word for `choice`.
template <typename Choice>
constexpr std::string_view name_of(Choice choice) noexcept {
  return choice_names<Choice>[static_cast<std::size_t>(choice)];
}

/// The choice of that word. Error(usage) listing the words.
template <typename Choice>
Choice parse_choice(std::string_view text) {
  const auto& names = choice_names<Choice>;
  const auto found = std::find(names.begin(), names.end(), text);
  if (found != names.end()) return static_cast<Choice>(found - names.begin());
  throw Error(
      ExitCode::usage, fmt::format("'{}' is not one of the choices", printable(text)),
      did_you_mean(text, {names.begin(), names.end()}, "", fmt::format("choose one of: {}", fmt::join(names, ", "))));
}

}  // namespace weightcast
