#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options/format_options.hpp"
#include "options/source_options.hpp"

namespace weightcast {

/// What every job of several ranks is asked.
struct JobOptions : SourceOptions, FormatOptions, DeviceOptions {
  std::optional<std::uint64_t> tp;  ///< default: (world - trainers) / dp
  std::uint64_t dp = 1;
  std::uint64_t readers = 0;  ///< threads that read on each engine meanwhile
  double timeout_s = 60;
  std::string json;  ///< where the report goes; empty: none
};

/// Reads and checks those of them that the command has. Error(usage), Error(config).
JobOptions parse_job_options(const Options& options);

}  // namespace weightcast
