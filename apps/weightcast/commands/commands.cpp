#include "commands/commands.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "options/bench_options.hpp"
#include "options/update_options.hpp"
#include "weightcast/model/model_config.hpp"

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

OptionOwners option_owners() {
  OptionOwners owners;
  for (const Command& command : commands()) {
    for (const OptionSpec& option : command.spec.options) {
      auto& names = owners[option.name];
      names += (names.empty() ? "" : ", ") + command.spec.name;
    }
  }
  return owners;
}

std::string overview_text() {
  std::string text =
      "weightcast moves the weights of a model from a trainer to tensor-parallel inference engines, and proves it.\n\n"
      "  weightcast COMMAND [options]\n\n";
  for (const Command& command : commands()) {
    const std::string& summary = command.spec.summary;
    text += fmt::format("  {:<10}{}\n", command.spec.name, summary.substr(0, summary.find('\n')));
  }
  text +=
      "\n  weightcast help COMMAND     the options of a command; also weightcast COMMAND --help\n"
      "  weightcast --version        versions of this program and its libraries\n\n";
  text += fmt::format("Named shapes, for --model: {}\n\nExit status\n", fmt::join(named_shapes(), ", "));
  for (const auto code : {ExitCode::ok, ExitCode::usage, ExitCode::bad_data, ExitCode::no_input, ExitCode::unavailable,
                          ExitCode::internal, ExitCode::cant_create, ExitCode::io_error, ExitCode::busy,
                          ExitCode::mismatch, ExitCode::config, ExitCode::deadline})
    text += fmt::format("  {:>3}  {}\n", static_cast<int>(code), describe(code));
  return text + "verify says 0 for the same, 1 for different, 2 for trouble.\n";
}

}  // namespace weightcast
