#include "output/notes.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "weightcast/core/bytes.hpp"

namespace weightcast {

void print_notes(const std::string& what, const std::vector<std::string>& notes) {
  for (const auto& note : notes)
    fmt::print(stderr, "note: {}{}{}\n", printable(what), what.empty() ? "" : ": ", printable(note, 1000));
}

}  // namespace weightcast
