#pragma once

#include <string>

#include "options/options.hpp"

namespace weightcast {

/// What a trainer may send for a version: all of it, or what changed, where that pays.
enum class DeltaChoice { off, automatic };
/// The same for bench, which finds what changed while a training loop fills in its weights, or between two versions
/// that are both there.
enum class BenchDelta { off, automatic, versions };
template <>
inline constexpr std::array<std::string_view, 2> choice_names<DeltaChoice>{"off", "auto"};
template <>
inline constexpr std::array<std::string_view, 3> choice_names<BenchDelta>{"off", "auto", "versions"};

OptionSpec delta_option();
OptionSpec bench_delta_option();
OptionSpec delta_limit_option();
OptionSpec changed_option();
/// GroupOptions::delta_limit for that choice.
template <typename Choice>
constexpr double limit_for(Choice choice, double limit) noexcept {
  return choice == Choice::off ? 0 : limit;
}

}  // namespace weightcast
