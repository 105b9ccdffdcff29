#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "options/choices.hpp"
#include "weightcast/core/error.hpp"

/// The options of a subcommand, wherever they were written: command line, WEIGHTCAST_* environment, --config file (INI,
/// without sections), defaults, in that order of precedence.
namespace weightcast {

struct OptionSpec {
  std::string name;        ///< "shard-size"; as a variable WEIGHTCAST_SHARD_SIZE, as a key shard-size
  std::string value_name;  ///< "SIZE"; empty for a flag
  std::string help;
  std::optional<std::string> default_value = {};
  /// Whether it can be a variable, too: not where that of another command has this name and means something else.
  bool variable = true;
};

struct CommandSpec {
  std::string name;
  std::string arguments;  ///< what follows the name in the first line of the help
  std::string summary;    ///< one line, and then, if need be, more
  std::vector<OptionSpec> options = {};
  std::size_t paths = 0;                ///< number of arguments that are not options
  bool parallel = false;                ///< runs under mpirun
  int error_status = 0;                 ///< exit status of every error, when not that of its ExitCode
  std::string program = "weightcast ";  ///< what comes before the name
};

/// Options of other commands: "shard-size" -> "synth", "repeat" -> "update, bench".
using OptionOwners = std::map<std::string, std::string>;

/// --model: `what`, like "a shape", and which there are.
OptionSpec model_option(const std::string& value_name, const std::string& what);
/// --ignore, of every command that matches a checkpoint with a model.
OptionSpec ignore_option();
/// --wide, of every command that prints a table.
OptionSpec wide_option();

/// What was given for the options of one subcommand. Getters throw Error naming the option, where its value came from
/// and what is wrong with it: ExitCode::usage for the command line, ExitCode::config for the environment and the file.
class Options {
 public:
  /// `environment` is a list of NAME=VALUE. `known_names` are the options of all subcommands: a variable or key that
  /// belongs to another one is accepted and has no effect; any other unknown key is an error, as are a variable that
  /// looks like a misspelt option (near_miss()) and an option given twice. `owners` is for hints.
  static Options parse(const CommandSpec& command, std::span<const std::string> arguments,
                       std::span<const std::string> environment, const std::set<std::string>& known_names,
                       const OptionOwners& owners = {});

  bool help() const noexcept { return help_; }
  bool print_config() const noexcept { return print_config_; }

  /// Whether the command has such an option.
  bool takes(const std::string& name) const noexcept { return find(name) != nullptr; }
  /// Whether the option has a value, be it a default.
  bool has(const std::string& name) const;
  bool flag(const std::string& name) const;
  /// The text of an option, or an empty string.
  std::string text(const std::string& name) const;
  /// The text of an option that must be there. Error(usage).
  std::string required(const std::string& name) const;
  std::uint64_t number(const std::string& name, std::uint64_t least = 0,
                       std::uint64_t most = std::numeric_limits<std::uint64_t>::max()) const;
  std::uint64_t size(const std::string& name) const;
  double duration_s(const std::string& name, double least_s = 0) const;
  /// More than 0, at most 1.
  double share(const std::string& name) const;
  /// The items of a comma-separated list, or none. An empty item is an error.
  std::vector<std::string> list(const std::string& name) const;

  template <typename Choice>
  Choice choice(const std::string& name) const {
    return convert<Choice>(name, text(name), parse_choice<Choice>);
  }
  template <typename Choice>
  std::vector<Choice> choices(const std::string& name) const {
    std::vector<Choice> result;
    for (const auto& item : list(name)) result.push_back(convert<Choice>(name, item, parse_choice<Choice>));
    return result;
  }
  /// A list of numbers up to `most`.
  std::vector<int> numbers(const std::string& name, int most) const;

  /// The arguments that are not options, CommandSpec::paths of them. Error(usage) when the count is another.
  const std::vector<std::string>& paths() const;

  /// Every option with its value and where it came from: "tp = 3  # WEIGHTCAST_TP". Itself a valid --config file.
  std::string describe() const;

 private:
  struct Value {
    std::string text, origin;
    ExitCode blame;
  };
  explicit Options(CommandSpec command) : command_(std::move(command)) {}

  const OptionSpec* find(const std::string& name) const noexcept;
  void read_command_line(std::span<const std::string> arguments, const OptionOwners& owners);
  void read_environment(std::span<const std::string> environment, const std::set<std::string>& known_names);
  void read_file(const std::string& path, const std::set<std::string>& known_names);
  void keep(std::map<std::string, Value>& values);
  [[noreturn]] void refuse(const std::string& name, const Error& reason) const;

  template <typename T>
  T convert(const std::string& name, const std::string& text, const std::function<T(std::string_view)>& parse) const {
    try {
      return parse(text);
    } catch (const Error& error) {
      refuse(name, error);
    }
  }

  CommandSpec command_;
  std::map<std::string, Value> values_;
  std::vector<std::string> paths_;
  bool help_ = false, print_config_ = false;
};

/// The help text of a subcommand.
std::string usage_text(const CommandSpec& command);

/// "WEIGHTCAST_SHARD_SIZE" for "shard-size".
std::string variable_name(const std::string& option_name);

}  // namespace weightcast
