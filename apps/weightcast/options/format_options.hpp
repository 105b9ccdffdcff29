#pragma once

#include <cstdint>

#include "options/options.hpp"
#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {

/// How engines hold the weights.
struct FormatOptions {
  bool whole_experts = false;  ///< each rank owns some of them, in place of a part of each
  Quantization quantization = Quantization::none;
};

OptionSpec ep_option();
OptionSpec quantize_option();
/// Error(usage).
FormatOptions parse_format_options(const Options& options);
/// For an engine of that many tensor-parallel ranks.
EngineFormat format_of(const FormatOptions& options, std::uint64_t tp) noexcept;

}  // namespace weightcast
