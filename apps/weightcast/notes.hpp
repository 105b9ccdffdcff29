#pragma once

#include <string>
#include <vector>

#include "options.hpp"

/// What the commands that read checkpoints have in common towards people.
namespace weightcast {

/// --ignore, of every command that matches a checkpoint with a model.
OptionSpec ignore_option();

/// Prints notes to stderr, a line each: "note: WHAT: ...", or without WHAT when that is empty.
void print_notes(const std::string& what, const std::vector<std::string>& notes);

}  // namespace weightcast
