#include "options/wrong_option.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <string_view>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/near_miss.hpp"

namespace weightcast {
namespace {

// What other programs call it.
constexpr std::array<std::pair<std::string_view, std::string_view>, 29> other_names{{
    {"tensor-parallel", "tp"},
    {"tensor-parallel-size", "tp"},
    {"tensor-model-parallel-size", "tp"},
    {"tp-size", "tp"},
    {"data-parallel", "dp"},
    {"data-parallel-size", "dp"},
    {"dp-size", "dp"},
    {"replicas", "dp"},
    {"num-trainers", "trainers"},
    {"expert-parallel", "ep"},
    {"enable-expert-parallel", "ep"},
    {"quantization", "quantize"},
    {"backend", "transport"},
    {"iterations", "repeat"},
    {"iters", "repeat"},
    {"steps", "repeat"},
    {"updates", "repeat"},
    {"from", "initial"},
    {"to", "target"},
    {"out", "output"},
    {"output-dir", "output"},
    {"input", "checkpoint"},
    {"path", "checkpoint"},
    {"model-path", "checkpoint"},
    {"overwrite", "force"},
    {"exclude", "ignore"},
    {"max-shard-size", "shard-size"},
    {"report", "json"},
    {"dry-run", "preflight"},
}};

constexpr std::array<std::string_view, 2> long_dashes{"\xe2\x80\x93", "\xe2\x80\x94"};  // en, em

/// Without dashes in front, = and what follows it; in small letters, words joined by -.
std::string bare_name(std::string_view written) {
  for (bool dashed = true; dashed;) {
    dashed = false;
    for (const std::string_view dash : {std::string_view("-"), long_dashes[0], long_dashes[1]}) {
      if (!written.starts_with(dash)) continue;
      written.remove_prefix(dash.size());
      dashed = true;
    }
  }
  std::string name(written.substr(0, written.find('=')));
  std::ranges::transform(name, name.begin(),
                         [](unsigned char c) { return c == '_' ? '-' : static_cast<char>(std::tolower(c)); });
  return name;
}

}  // namespace

bool looks_like_option(const std::string& argument) {
  return (argument.starts_with('-') && argument.size() > 1) ||
         std::ranges::any_of(long_dashes, [&](auto dash) { return argument.starts_with(dash); });
}

std::string usage_hint(const CommandSpec& command) {
  const auto needed = command.arguments.substr(0, command.arguments.find(" ["));
  return fmt::format("write {3}{0}{1} {2}; see {0}{1} --help", command.program, command.name, needed,
                     command.parallel ? "mpirun -n RANKS " : "");
}

Error unknown_option(const CommandSpec& command, const std::string& written, const OptionOwners& owners) {
  const auto name = bare_name(written);
  const auto see = fmt::format("see {}{} --help", command.program, command.name);
  std::set<std::string> own = {"help", "print-config", "config"};
  for (const OptionSpec& option : command.options) own.insert(option.name);
  std::string hint;
  if (own.contains(name)) {  // not with these dashes or letters
    hint = fmt::format("did you mean --{}? {}", name, see);
  } else if (const auto owner = owners.find(name); owner != owners.end()) {
    hint = fmt::format("it is an option of {}; {}", owner->second, see);
  } else if (name == "np" || name == "nproc" || name == "n" || name == "ranks" || name == "world-size") {
    hint = "the number of ranks is for mpirun to know: mpirun -n RANKS weightcast ...";
  } else {
    const auto* const other = std::ranges::find(other_names, name, [](const auto& pair) { return pair.first; });
    hint = other != other_names.end() && own.contains(std::string(other->second))
               ? fmt::format("did you mean --{}? {}", other->second, see)
               : did_you_mean(name, own, "--", see);
  }
  return Error(ExitCode::usage, fmt::format("unrecognised option '{}'", printable(written)), hint);
}

}  // namespace weightcast
