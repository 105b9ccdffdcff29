#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

/// The one error type of the project, and the exit codes that scripts rely on. Uses nothing.
namespace weightcast {

/// Exit status of the program, and kind of an error. The numbers are a contract (sysexits.h where it has one);
/// 77 (ctest's skip) and 126 and above are never used.
enum class ExitCode : int {
  ok = 0,            ///< done and verified
  usage = 64,        ///< the command line is wrong
  bad_data = 65,     ///< input exists but is malformed
  no_input = 66,     ///< input is missing or unreadable
  unavailable = 69,  ///< a peer, MPI or NCCL failed
  internal = 70,     ///< a defect of weightcast
  cant_create = 73,  ///< output cannot be created
  io_error = 74,     ///< output cannot be written
  busy = 75,         ///< try again later
  mismatch = 76,     ///< verification found different bytes
  config = 78,       ///< the configuration cannot work (tp that does not divide, too few ranks, ...)
  deadline = 124,    ///< a wait ran out of time
};

/// Short name of a code: "bad input data", "deadline passed", ...
std::string_view describe(ExitCode code) noexcept;

/// Where in a job an error arose; filled in by whoever knows it (see agree() in comm), empty or -1 when unknown.
struct ErrorOrigin {
  std::string stage;  ///< "prepare", "stage", "verify", "vote", "commit", "load", ...
  int rank = -1;      ///< rank in the update group
  std::string host;
  std::string role;  ///< "trainer" or "engine"
};

/// What failed and what the user can do about it. Carries fields, not only text, because reports need them.
class Error : public std::runtime_error {
 public:
  /// `message`: what failed, naming the file, offset or parameter. `hint`: what to do about it, or empty.
  Error(ExitCode code, const std::string& message, std::string hint = {})
      : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}

  ExitCode code() const noexcept { return code_; }
  const std::string& hint() const noexcept { return hint_; }
  const ErrorOrigin& origin() const noexcept { return origin_; }
  ErrorOrigin& origin() noexcept { return origin_; }

  /// Who knows of this error: this rank alone (the default), every rank (see agree() in comm), or a rank is out of
  /// reach: then, as when only this rank knows, the job must be aborted and not finalized.
  enum class Reach { local, everybody, lost };
  Reach reach() const noexcept { return reach_; }
  void set_reach(Reach reach) noexcept { reach_ = reach; }

 private:
  ExitCode code_;
  Reach reach_ = Reach::local;
  std::string hint_;
  ErrorOrigin origin_;
};

/// Throws Error(code) with a formatted message.
template <typename... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

/// The exception in flight as an Error: itself, or ExitCode::internal (no memory: unavailable) with its text.
/// Call inside a catch block.
Error current_error();

}  // namespace weightcast

/// States what a function relies on. A violation is a defect of weightcast: Error(internal) with the place.
#define WEIGHTCAST_EXPECTS(condition)                                                                             \
  do {                                                                                                            \
    if (!(condition)) [[unlikely]]                                                                                \
      ::weightcast::fail(::weightcast::ExitCode::internal, "{}:{}: expected {}", __FILE__, __LINE__, #condition); \
  } while (false)
