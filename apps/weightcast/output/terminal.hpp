#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "weightcast/core/temporary.hpp"

/// Where lines can be drawn again and again, and how wide they may be.
namespace weightcast {

/// Whether a terminal of this TERM (nullptr: not set) takes a carriage return: not a dumb one. Nothing else is asked of
/// it. No escape sequence is ever printed, so there is no colour that NO_COLOR could turn off.
bool can_redraw(const char* term) noexcept;
/// The width by COLUMNS (nullptr: not set), else what the terminal says (0: nothing), else usual_columns.
std::size_t columns_of(const char* columns, unsigned asked) noexcept;

/// The standard error that the user of process `pid` looks at: its own where that is a device; that of mpirun, mpiexec
/// and their like, where such a parent reads what `pid` prints and is on this host. The path below `proc` of that
/// parent or of `pid`, as "/proc/17"; nothing where stderr goes elsewhere or cannot be looked at.
std::optional<std::filesystem::path> process_with_terminal(int pid, const std::filesystem::path& proc = "/proc");

/// Whether a process, given as /proc/PID, is in the background of its terminal.
bool in_background(const std::filesystem::path& process);

/// A terminal that shows the standard error of this process, be it by way of mpirun.
class Terminal {
 public:
  /// Nothing where there is none that can_redraw().
  static std::optional<Terminal> find();

  /// As wide as it is now: people change that.
  std::size_t columns() const noexcept;
  /// Writes what it takes at once: does not wait when the user has stopped the output. Nothing in the background of a
  /// terminal where that shall not print (stty tostop); but a rank, which mpirun puts into a group of its own, is in
  /// the background only when mpirun is.
  void write(std::string_view text) const;

 private:
  Terminal(UniqueFd fd, std::filesystem::path process) : fd_(std::move(fd)), process_(std::move(process)) {}

  UniqueFd fd_;
  std::filesystem::path process_;  // whose standard error it is
};

}  // namespace weightcast
