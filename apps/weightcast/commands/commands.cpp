#include "commands/commands.hpp"

#include <algorithm>

#include "options/bench_options.hpp"
#include "options/update_options.hpp"

namespace weightcast {

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {update_command(), [](const Options& options) { return run_update(parse_update_options(options)); }},
      {bench_command(), [](const Options& options) { return run_bench(parse_bench_options(options)); }},
      {plan_command(), run_plan},
      {verify_command(), run_verify},
      {snapshot_command(), run_snapshot},
      {inspect_command(), run_inspect},
      {synth_command(), run_synth},
  };
  return all;
}

const Command* find_command(std::string_view name) {
  const auto& all = commands();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Command& c) { return c.spec.name == name; });
  return found == all.end() ? nullptr : &*found;
}

std::set<std::string> known_option_names() {
  std::set<std::string> names;
  for (const Command& command : commands()) {
    for (const OptionSpec& option : command.spec.options) names.insert(option.name);
  }
  return names;
}

std::string overview_text() {
  std::string text =
      "weightcast moves the weights of a model from a trainer to tensor-parallel inference engines, and proves it.\n\n"
      "  weightcast COMMAND [options]\n\n";
  for (const Command& command : commands()) {
    const std::string& summary = command.spec.summary;
    text += fmt::format("  {:<10}{}\n", command.spec.name, summary.substr(0, summary.find('\n')));
  }
  return text +
         "\n  weightcast COMMAND --help   the options of a command\n"
         "  weightcast --version        versions of this program and its libraries\n";
}

}  // namespace weightcast
