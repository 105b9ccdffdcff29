#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "commands/commands.hpp"
#include "output/versions.hpp"
#include "weightcast/comm/mpi_library.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/near_miss.hpp"
#include "weightcast/job/error_block.hpp"
#include "weightcast/job/launch.hpp"
#include "weightcast/job/stop.hpp"

namespace weightcast {
namespace {

void print_once(const std::string& text) {
  if (launch_copy().index == 0) fmt::print("{}", text);
}

/// Output that did not reach its file (a full disk, a closed pipe) must not end in success.
void flush_output() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  fail(ExitCode::io_error, "cannot write to the standard output: {}", std::strerror(errno));
}

bool is_help(const std::string& argument) {
  return argument == "--help" || argument == "-h" || argument == "help";
}
bool is_version(const std::string& argument) {
  return argument == "--version" || argument == "-V" || argument == "version";
}

[[noreturn]] void refuse_command(const std::string& word) {
  std::set<std::string> names = {"help", "version"};
  for (const Command& each : commands()) names.insert(each.spec.name);
  if (word.starts_with('-') && !near_miss(word.substr(std::min(word.find_first_not_of('-'), word.size())), names)) {
    throw Error(ExitCode::usage, fmt::format("a command is missing before {}", printable(word)),
                "write weightcast COMMAND [options]; see weightcast --help");
  }
  throw Error(
      ExitCode::usage, fmt::format("'{}' is not a command", printable(word)),
      did_you_mean(word, names, "", fmt::format("commands are {}; see weightcast --help", fmt::join(names, ", "))));
}

/// `help COMMAND` and `COMMAND help` are `COMMAND --help`, but for commands that may mean a file.
void rewrite_help(std::vector<std::string>& arguments) {
  std::error_code ignored;
  if (arguments.size() > 1 && arguments[0] == "help") arguments = {arguments[1], "--help"};
  if (arguments.size() == 2 && arguments[1] == "help" && !std::filesystem::exists("help", ignored))
    arguments[1] = "--help";
}

int run(const std::vector<std::string>& arguments, const Command* command) {
  if (arguments.empty()) throw Error(ExitCode::usage, "a command is missing", "see weightcast --help");
  if (is_help(arguments[0])) return print_once(overview_text()), 0;
  if (is_version(arguments[0])) return print_once(version_text()), 0;
  if (command == nullptr) refuse_command(arguments[0]);
  std::vector<std::string> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) environment.emplace_back(*variable);
  const auto options = Options::parse(command->spec, std::span(arguments).subspan(1), environment, known_option_names(),
                                      option_owners());
  if (options.help()) return print_once(usage_text(command->spec)), 0;
  if (options.print_config()) return print_once(options.describe()), 0;
  if (!command->spec.parallel && launch_copy().count > 1) {
    throw Error(ExitCode::usage, fmt::format("{} runs on one rank", command->spec.name),
                "start it without mpirun, or with mpirun -n 1");
  }
  if (command->spec.parallel) {
    leave_default_binding();
    if (const auto reason = why_no_mpi()) throw *reason;
  }
  return command->run(options);
}

/// Shows an error that nobody has handled and says how the process must end.
int report(Error error, const Command* command) {
  const int own_status = command != nullptr ? command->spec.error_status : 0;
  const int status = own_status != 0 ? own_status : static_cast<int>(error.code());
  // A rank of update and bench is one also when a script is between it and the launcher.
  const bool parallel = command != nullptr && command->spec.parallel;
  const auto copy = parallel ? LaunchCopy{launch_rank(), launch_size()} : launch_copy();
  const bool among_others = copy.count > 1 || copy.index > 0;
  if (among_others && error.origin().rank < 0) error.origin().rank = launch_rank();
  if (among_others && error.origin().host.empty()) error.origin().host = host_name();

  bool silent = false;
  if (copy.index > 0) {
    // Rank 0 has most likely failed for the same reason, prints it, and the launcher ends this process while it waits.
    // An environment variable or a file may be wrong on this rank's host alone, though.
    silent = error.reach() == Error::Reach::everybody || (!inside_mpi() && error.code() == ExitCode::usage);
    let_others_speak(silent ? 1 : 5);
  }
  std::fflush(stdout);
  if (!silent) std::fputs(error_block(error, status).c_str(), stderr);
  std::fflush(stderr);
  if (inside_mpi()) abort_job(error.code());  // the others may still wait for this rank
  return status;
}

}  // namespace
}  // namespace weightcast

int main(int argc, char** argv) {
  using namespace weightcast;
  const Command* command = nullptr;
  catch_signals();
  try {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    rewrite_help(arguments);
    if (!arguments.empty()) command = find_command(arguments[0]);
    const int status = run(arguments, command);
    flush_output();
    return status;
  } catch (...) {
    return report(current_error(), command);
  }
}
