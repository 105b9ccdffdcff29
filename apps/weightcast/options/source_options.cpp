#include "options/source_options.hpp"

namespace weightcast {

OptionSpec trainers_option() {
  return {"trainers", "R", "trainer ranks", "1"};
}

OptionSpec source_layout_option() {
  return {"source-layout", "whole|fsdp|tp", "what each trainer rank has; default whole, of several trainer ranks fsdp"};
}

std::string describe(const SourceOptions& sources) {
  return fmt::format("--trainers {} --source-layout {}", sources.trainers, name_of(sources.source_layout));
}

SourceOptions parse_source_options(const Options& options) {
  constexpr std::uint64_t most_trainers = 4096;  // each has an entry for every parameter
  SourceOptions result;
  if (!options.takes("trainers")) return result;
  result.trainers = options.number("trainers", 1, most_trainers);
  if (result.trainers > 1) result.source_layout = LayoutKind::fsdp;
  if (options.has("source-layout")) result.source_layout = options.choice<LayoutKind>("source-layout");
  return result;
}

}  // namespace weightcast
