#include "options/job_options.hpp"

namespace weightcast {

JobOptions parse_job_options(const Options& options) {
  constexpr std::uint64_t most_ranks = 1'000'000, most_readers = 1024;  // beyond what a launcher or a host can start
  constexpr int last_gpu = 1023;
  constexpr double least_timeout_s = 0.1;  // ranks that share a core do not answer sooner
  JobOptions result;
  static_cast<SourceOptions&>(result) = parse_source_options(options);
  if (options.takes("ep")) static_cast<FormatOptions&>(result) = parse_format_options(options);
  if (options.has("tp")) result.tp = options.number("tp", 1, most_ranks);
  result.dp = options.number("dp", 1, most_ranks);
  result.device = options.choice<DeviceChoice>("device");
  if (options.takes("trainer-device") && options.has("trainer-device"))
    result.trainer_device = options.choice<DeviceChoice>("trainer-device");
  if (options.takes("gpus")) result.gpus = options.numbers("gpus", last_gpu);
  if (options.takes("readers")) result.readers = options.number("readers", 0, most_readers);
  result.timeout_s = options.duration_s("timeout", least_timeout_s);
  if (options.takes("json")) result.json = options.text("json");
  return result;
}

}  // namespace weightcast
