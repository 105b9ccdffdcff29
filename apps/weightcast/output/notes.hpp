#pragma once

#include <string>
#include <vector>

namespace weightcast {

/// Prints notes to stderr, a line each: "note: WHAT: ...", or without WHAT when that is empty.
void print_notes(const std::string& what, const std::vector<std::string>& notes);

}  // namespace weightcast
