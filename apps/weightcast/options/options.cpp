#include "options/options.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <sstream>

#include "options/wrong_option.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/near_miss.hpp"
#include "weightcast/model/model_config.hpp"

namespace weightcast {
namespace {

namespace po = boost::program_options;

constexpr std::string_view variable_prefix = "WEIGHTCAST_";
constexpr std::uint64_t config_file_limit = mebibyte;

po::options_description describe_options(const CommandSpec& command) {
  po::options_description description("Options", 100);
  for (const OptionSpec& option : command.options) {
    if (option.value_name.empty()) {
      description.add_options()(option.name.c_str(), po::bool_switch(), option.help.c_str());
      continue;
    }
    auto* value = po::value<std::string>()->value_name(option.value_name);
    if (option.default_value) value->default_value(*option.default_value);
    description.add_options()(option.name.c_str(), value, option.help.c_str());
  }
  return description;
}

std::uint64_t parse_number(std::string_view text, std::uint64_t least, std::uint64_t most) {
  std::uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status == std::errc() && end == text.data() + text.size() && value >= least && value <= most) return value;
  const bool open = most == std::numeric_limits<std::uint64_t>::max();
  throw Error(ExitCode::usage, fmt::format("'{}' is not a number that it takes", printable(text)),
              open ? fmt::format("give a whole number from {} on", least)
                   : fmt::format("give a whole number from {} to {}", least, most));
}

bool parse_flag(std::string_view text) {
  for (const auto* word : {"true", "yes", "on", "1"}) {
    if (text == word) return true;
  }
  for (const auto* word : {"false", "no", "off", "0"}) {
    if (text == word) return false;
  }
  throw Error(ExitCode::usage, fmt::format("'{}' is neither true nor false", printable(text)), "write true or false");
}

}  // namespace

OptionSpec model_option(const std::string& value_name, const std::string& what) {
  return {"model", value_name,
          fmt::format("{}: a config.json, a folder that holds one, or of {}", what, fmt::join(named_shapes(), ", "))};
}

OptionSpec ignore_option() {
  return {"ignore", "PATTERNS", "tensors of a checkpoint to leave out, like 'model.visual.*,*.scale'"};
}

OptionSpec wide_option() {
  return {"wide", "", "print every column, however wide the table is"};
}

std::string variable_name(const std::string& option_name) {
  std::string result(variable_prefix);
  for (const char c : option_name) result += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return result;
}

Options Options::parse(const CommandSpec& command, std::span<const std::string> arguments,
                       std::span<const std::string> environment, const std::set<std::string>& known_names,
                       const OptionOwners& owners) {
  Options options(command);
  options.read_command_line(arguments, owners);
  if (options.help_) return options;
  options.read_environment(environment, known_names);
  if (options.has("config")) options.read_file(options.text("config"), known_names);
  std::map<std::string, Value> defaults;
  for (const OptionSpec& option : command.options) {
    if (option.default_value) defaults[option.name] = {*option.default_value, "default", ExitCode::internal};
  }
  options.keep(defaults);
  return options;
}

void Options::read_command_line(std::span<const std::string> arguments, const OptionOwners& owners) {
  auto description = describe_options(command_);
  description.add_options()("help", "")("print-config", "")("config", po::value<std::string>());
  using namespace po::command_line_style;
  std::map<std::string, Value> values;
  try {
    std::vector<std::string> words(arguments.begin(), arguments.end());
    std::replace(words.begin(), words.end(), std::string("-h"), std::string("--help"));
    const bool all_are_paths = std::ranges::find(words, "--") != words.end();  // behind it, at least
    const auto parsed = po::command_line_parser(words)
                            .options(description)
                            .style(allow_long | long_allow_adjacent | long_allow_next)  // no abbreviations
                            .run();
    for (const auto& option : parsed.options) {
      const std::string& name = option.string_key;
      if (name.empty()) {
        for (const auto& word : option.value) {
          if (!all_are_paths && looks_like_option(word)) throw unknown_option(command_, word, owners);
          paths_.push_back(word);
        }
      } else if (name == "help") {
        help_ = true;
      } else if (name == "print-config") {
        print_config_ = true;
      } else {
        const std::string text = option.value.empty() ? "true" : option.value.front();
        if (option.original_tokens.size() > 1 && text.starts_with("--")) {
          throw Error(ExitCode::usage, fmt::format("--{} has no value: {} follows", name, printable(text)),
                      fmt::format("write --{} {}", name, find(name) == nullptr ? "FILE" : find(name)->value_name));
        }
        if (!values.try_emplace(name, Value{text, "command line", ExitCode::usage}).second) {
          throw Error(ExitCode::usage, fmt::format("--{} is given twice", name), "leave one of them out");
        }
      }
    }
  } catch (const po::unknown_option& error) {
    throw unknown_option(command_, error.get_option_name(), owners);
  } catch (const po::error& error) {
    throw Error(ExitCode::usage, printable(error.what()),
                fmt::format("see {}{} --help", command_.program, command_.name));
  }
  keep(values);
}

void Options::read_environment(std::span<const std::string> environment, const std::set<std::string>& known_names) {
  auto options = known_names;
  options.insert("config");
  std::map<std::string, std::string> names;
  for (const auto& name : options) names[variable_name(name)] = name;
  std::map<std::string, Value> values;
  for (const std::string& line : environment) {
    if (!line.starts_with(variable_prefix)) continue;
    const std::size_t equals = line.find('=');
    const std::string variable = line.substr(0, equals);
    const auto name = names.find(variable);
    if (name == names.end()) {  // Kubernetes makes such for a service of that name
      const auto meant = near_miss(std::string_view(variable).substr(variable_prefix.size()), options);
      if (!meant) continue;
      throw Error(ExitCode::config, fmt::format("the environment variable {} is unknown", printable(variable)),
                  fmt::format("did you mean {}? Correct its name, or unset it", variable_name(*meant)));
    }
    const auto* const option = find(name->second);
    if (name->second == "config" || (option != nullptr && option->variable)) {
      values[name->second] = {equals == std::string::npos ? "" : line.substr(equals + 1), variable, ExitCode::config};
    }
  }
  keep(values);
}

void Options::read_file(const std::string& path, const std::set<std::string>& known_names) {
  std::istringstream text(read_text_file(path, config_file_limit));
  std::map<std::string, Value> values;
  try {
    for (const auto& option : po::parse_config_file(text, describe_options(command_), true).options) {
      const std::string& name = option.string_key;
      if (!known_names.contains(name)) {
        throw Error(ExitCode::config, fmt::format("{}: the key '{}' is unknown", path, printable(name)),
                    did_you_mean(name, known_names, "",
                                 "keys are the names of options without dashes in front, like timeout = 30s, "
                                 "without sections"));
      }
      if (find(name) == nullptr) continue;
      const std::string value = option.value.empty() ? "" : option.value.front();
      if (!values.try_emplace(name, Value{value, path, ExitCode::config}).second) {
        fail(ExitCode::config, "{}: the key '{}' is there twice", path, name);
      }
    }
  } catch (const po::error& error) {
    throw Error(ExitCode::config, fmt::format("{}: {}", path, printable(error.what())), "write a line as key = value");
  }
  keep(values);
}

void Options::keep(std::map<std::string, Value>& values) {
  values_.merge(values);
}

const OptionSpec* Options::find(const std::string& name) const noexcept {
  const auto& options = command_.options;
  const auto found = std::find_if(options.begin(), options.end(), [&](const auto& o) { return o.name == name; });
  return found == options.end() ? nullptr : &*found;
}

void Options::refuse(const std::string& name, const Error& reason) const {
  const auto value = values_.find(name);
  if (value == values_.end()) throw reason;
  const ExitCode code = value->second.blame;
  throw Error(code, fmt::format("--{} ({}): {}", name, value->second.origin, reason.what()), reason.hint());
}

bool Options::has(const std::string& name) const {
  WEIGHTCAST_EXPECTS(name == "config" || takes(name));
  return values_.contains(name);
}

std::string Options::text(const std::string& name) const {
  return has(name) ? values_.at(name).text : std::string();
}

std::string Options::required(const std::string& name) const {
  const std::string value = text(name);
  if (!value.empty()) return value;
  throw Error(ExitCode::usage, fmt::format("{} needs --{}", command_.name, name), usage_hint(command_));
}

bool Options::flag(const std::string& name) const {
  return has(name) && convert<bool>(name, text(name), parse_flag);
}

std::uint64_t Options::number(const std::string& name, std::uint64_t least, std::uint64_t most) const {
  return convert<std::uint64_t>(name, text(name), [&](auto word) { return parse_number(word, least, most); });
}

std::uint64_t Options::size(const std::string& name) const {
  return convert<std::uint64_t>(name, text(name), parse_size);
}

double Options::duration_s(const std::string& name, double least_s) const {
  return convert<double>(name, text(name), [&](auto word) {
    const auto seconds = parse_duration(word);
    if (seconds >= least_s) return seconds;
    throw Error(ExitCode::usage, fmt::format("'{}' is too short", printable(word)),
                fmt::format("give {:g}s at least, and more on a machine with much to do", least_s));
  });
}

double Options::share(const std::string& name) const {
  return convert<double>(name, text(name), parse_share);
}

std::vector<std::string> Options::list(const std::string& name) const {
  std::vector<std::string> items;
  if (!has(name)) return items;
  std::istringstream text(values_.at(name).text + ",");
  for (std::string item; std::getline(text, item, ',');) {
    if (item.empty()) refuse(name, Error(ExitCode::usage, "an item of the list is empty", "write it like a,b,c"));
    items.push_back(item);
  }
  return items;
}

std::vector<int> Options::numbers(const std::string& name, int most) const {
  std::vector<int> result;
  for (const auto& item : list(name)) {
    result.push_back(convert<int>(name, item, [&](auto word) {
      return static_cast<int>(parse_number(word, 0, static_cast<std::uint64_t>(most)));
    }));
  }
  return result;
}

const std::vector<std::string>& Options::paths() const {
  if (paths_.size() == command_.paths) return paths_;
  const std::string message = paths_.size() > command_.paths
                                  ? fmt::format("the argument '{}' is one too many", printable(paths_[command_.paths]))
                                  : fmt::format("{} needs {} path(s)", command_.name, command_.paths);
  throw Error(ExitCode::usage, message, usage_hint(command_));
}

std::string Options::describe() const {
  std::string text;
  for (const OptionSpec& option : command_.options) {
    const auto value = values_.find(option.name);
    if (value != values_.end()) {
      text += fmt::format("{:<39} # {}\n", fmt::format("{} = {}", option.name, printable(value->second.text)),
                          printable(value->second.origin));
    } else if (option.value_name.empty()) {
      text += fmt::format("{:<39} # default\n", option.name + " = false");
    } else {
      text += fmt::format("{:<39} # not set\n", "# " + option.name);
    }
  }
  return text;
}

std::string usage_text(const CommandSpec& command) {
  std::ostringstream text;
  text << (command.parallel ? "mpirun -n RANKS " : "") << command.program << command.name << ' ' << command.arguments
       << "\n\n"
       << command.summary << "\n\n"
       << describe_options(command) << R"(
  --config FILE    more options, a line each: key = value
  --print-config   show every option's value and where it came from, then stop
  --help, -h       show this, then stop

Every option can also be an environment variable ()"
       << variable_name("name-of-it") << R"(). The command line comes
before the environment, the environment before the file. Sizes: 4096, 256M, 1G. Durations: 500ms, 60s, 2m, 1h.
)";
  return text.str();
}

}  // namespace weightcast
