#include "options/format_options.hpp"

namespace weightcast {

OptionSpec ep_option() {
  return {"ep", "", "expert parallel: give each rank whole experts, in place of a part of each"};
}

OptionSpec quantize_option() {
  return {"quantize", "none|fp8-block|fp8-channel",
          "hold matrices of linear layers as F8_E4M3 with scales, of 128 x 128 blocks or of rows", "none"};
}

FormatOptions parse_format_options(const Options& options) {
  return {.whole_experts = options.flag("ep"), .quantization = options.choice<Quantization>("quantize")};
}

EngineFormat format_of(const FormatOptions& options, std::uint64_t tp) noexcept {
  return {.ep = options.whole_experts ? tp : 1, .quantization = options.quantization};
}

}  // namespace weightcast
