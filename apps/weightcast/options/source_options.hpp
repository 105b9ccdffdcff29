#pragma once

#include <cstdint>
#include <string>

#include "options/options.hpp"

namespace weightcast {

/// How many trainer ranks there are, and which part of the weights each of them has.
struct SourceOptions {
  std::uint64_t trainers = 1;
  LayoutKind source_layout = LayoutKind::whole;  ///< fsdp when there are several and nobody said
};

OptionSpec trainers_option();
OptionSpec source_layout_option();
/// As they are given on the command line.
std::string describe(const SourceOptions& sources);
/// The defaults for a command that has neither. Error(usage), Error(config).
SourceOptions parse_source_options(const Options& options);

}  // namespace weightcast
