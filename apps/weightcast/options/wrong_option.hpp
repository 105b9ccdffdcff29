#pragma once

#include <map>
#include <string>

#include "options/options.hpp"

/// What is said of a command line that the command does not take.
namespace weightcast {

/// Error(usage) for `written`, which looks like an option and is none of this command: its hint names the one that is
/// meant, or the commands that have it.
Error unknown_option(const CommandSpec& command, const std::string& written, const OptionOwners& owners);

/// Whether an argument looks like an option: -x, and also with the long dashes that word processors make of --.
bool looks_like_option(const std::string& argument);

/// "write weightcast synth --model SHAPE --output DIR; see weightcast synth --help".
std::string usage_hint(const CommandSpec& command);

}  // namespace weightcast
