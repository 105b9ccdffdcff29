#include "output/terminal.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "weightcast/core/text_width.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return line;
}

/// What a descriptor is: "/dev/pts/3", "pipe:[4711]"; empty when that cannot be seen.
std::string target(const fs::path& descriptor) {
  std::error_code refused;
  return fs::read_symlink(descriptor, refused).string();
}

bool is_device(const std::string& target) {
  return target.starts_with("/dev/");
}

bool has_open(const fs::path& process, const std::string& what) {
  std::error_code refused;
  for (fs::directory_iterator entry(process / "fd", refused), end; !refused && entry != end; entry.increment(refused)) {
    if (target(entry->path()) == what) return true;
  }
  return false;
}

/// Of a process: parent, group, and the group in the foreground of its terminal.
struct Stat {
  int parent = 0, group = 0, foreground = 0;
};

Stat stat_of(const fs::path& process) {
  const auto line = first_line(process / "stat");
  const auto name_end = line.rfind(')');  // pid (name) state parent group session terminal foreground ...
  Stat stat;
  if (name_end != line.npos)
    std::sscanf(line.c_str() + name_end + 1, " %*c %d %d %*d %*d %d", &stat.parent, &stat.group, &stat.foreground);
  return stat;
}

}  // namespace

bool can_redraw(const char* term) noexcept {
  return term != nullptr && *term != '\0' && std::strcmp(term, "dumb") != 0;
}

std::size_t columns_of(const char* columns, unsigned asked) noexcept {
  unsigned given = 0;
  const char* const end = columns == nullptr ? nullptr : columns + std::strlen(columns);
  const bool valid = end != nullptr && std::from_chars(columns, end, given) == std::from_chars_result{end, {}};
  if (valid && given > 0) return given;
  return asked > 0 ? asked : usual_columns;
}

std::optional<fs::path> process_with_terminal(int pid, const fs::path& proc) {
  constexpr int most_parents = 64;  // each is a shell, a script or a launcher
  const auto own = proc / std::to_string(pid);
  const auto printed = target(own / "fd/2");
  if (printed.empty() || is_device(printed)) return printed.empty() ? std::nullopt : std::optional(own);
  bool read = false;
  auto process = own;
  for (int i = 0; i < most_parents; ++i) {
    const int parent = stat_of(process).parent;
    if (parent <= 1) break;
    process = proc / std::to_string(parent);
    const auto name = first_line(process / "comm");
    const bool relay = name.starts_with("hydra_");  // mpiexec of MPICH has one between itself and its ranks
    const bool launcher = name == "mpirun" || name.starts_with("mpiexec") || name == "orterun" || name == "prterun";
    if (!relay && !launcher) continue;
    // A script may have sent it elsewhere: only what the launcher reads comes to the launcher's terminal.
    read = read || has_open(process, printed);
    if (launcher) return read && is_device(target(process / "fd/2")) ? std::optional(process) : std::nullopt;
  }
  return std::nullopt;
}

bool in_background(const fs::path& process) {
  const auto stat = stat_of(process);
  return stat.foreground > 0 && stat.foreground != stat.group;
}

std::optional<Terminal> Terminal::find() {
  if (!can_redraw(std::getenv("TERM"))) return std::nullopt;
  const auto process = process_with_terminal(::getpid());
  if (!process) return std::nullopt;
  // Opened anew: that it does not wait is then no business of others who have it open.
  UniqueFd fd(::open((*process / "fd/2").c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
  if (!fd || ::isatty(fd.get()) != 1) return std::nullopt;
  return Terminal(std::move(fd), *process);
}

std::size_t Terminal::columns() const noexcept {
  winsize size{};
  const bool told = ::ioctl(fd_.get(), TIOCGWINSZ, &size) == 0;
  return columns_of(std::getenv("COLUMNS"), told ? size.ws_col : 0U);
}

void Terminal::write(std::string_view text) const {
  termios settings{};
  const bool foreground_only = ::tcgetattr(fd_.get(), &settings) == 0 && (settings.c_lflag & TOSTOP) != 0;
  if (foreground_only && in_background(process_)) return;
  sigset_t stop, before;
  ::sigemptyset(&stop);
  ::sigaddset(&stop, SIGTTOU);
  ::pthread_sigmask(SIG_BLOCK, &stop, &before);
  [[maybe_unused]] const auto written = ::write(fd_.get(), text.data(), text.size());
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace weightcast
