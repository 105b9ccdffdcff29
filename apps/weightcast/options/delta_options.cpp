#include "options/delta_options.hpp"

namespace weightcast {

OptionSpec delta_option() {
  return {"delta", "MODE", "off (send all of each version) or auto (send what changed, where that pays)", "off"};
}

OptionSpec bench_delta_option() {
  return {"delta", "LIST",
          "of off, auto (send what changed, found while a training loop fills in its weights), versions (found between "
          "two versions in memory)",
          "off"};
}

OptionSpec delta_limit_option() {
  return {"delta-limit", "SHARE", "send deltas up to this share of the bytes, and take memory for so much", "0.4"};
}

OptionSpec changed_option() {
  return {"changed", "SHARE",
          "of the elements, in which versions differ, at random places, like 2%; default: every byte differs"};
}

}  // namespace weightcast
