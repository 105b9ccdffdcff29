#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "options/options.hpp"

/// The subcommands. Each has a description and a function that does the work and returns the exit status.
namespace weightcast {

struct Command {
  CommandSpec spec;
  int (*run)(const Options& options);
};

/// All subcommands, in the order of the help text.
const std::vector<Command>& commands();
/// The subcommand of that name, or nullptr.
const Command* find_command(std::string_view name);
/// The names of the options of all subcommands.
std::set<std::string> known_option_names();
/// Which commands have an option, for all of them.
OptionOwners option_owners();
/// The text of `weightcast --help`.
std::string overview_text();

// The subcommands that run without MPI. update and bench: update_options.hpp, bench_options.hpp.
CommandSpec plan_command();
int run_plan(const Options& options);
CommandSpec verify_command();
int run_verify(const Options& options);
CommandSpec snapshot_command();
int run_snapshot(const Options& options);
CommandSpec inspect_command();
int run_inspect(const Options& options);
CommandSpec synth_command();
int run_synth(const Options& options);

}  // namespace weightcast
