#include "output/progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>

#include "output/terminal.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/text_width.hpp"
#include "weightcast/job/launch.hpp"
#include "weightcast/job/stop.hpp"

namespace weightcast {
namespace {

/// What there is to say of a state, the most important first: share, sizes, rate. Of constant width, or the bar
/// trembles.
std::array<std::string, 3> parts_of(const ProgressState& state) {
  if (state.total_bytes == 0) return {fmt::format("{:.0f} s", state.elapsed_s)};
  const auto done = std::min(state.done_bytes, state.total_bytes);
  const auto rate = static_cast<double>(done) / std::max(state.elapsed_s, 1e-3);
  return {fmt::format("{:3.0f} %", 100 * static_cast<double>(done) / static_cast<double>(state.total_bytes)),
          fmt::format("  {:>7} of {}", format_size(done), format_size(state.total_bytes)),
          fmt::format("  {:>7}/s", format_size(static_cast<std::uint64_t>(rate)))};
}

/// The line of the terminal that bars are drawn on, which all objects share, and where errors are printed, too.
class Screen {
 public:
  static Screen& get() {
    static Screen screen;
    return screen;
  }
  bool has_terminal() {
    const std::scoped_lock lock(mutex_);
    if (!looked_) terminal_ = Terminal::find();
    looked_ = true;
    return terminal_.has_value();
  }
  void draw(const std::string& label, const ProgressState& state) {
    const std::scoped_lock lock(mutex_);
    if (silent_) return;
    const auto bar = progress_bar(label, state, terminal_->columns() - 1);  // the last column would begin a new line
    write(bar + std::string(drawn_ > bar.size() ? drawn_ - bar.size() : 0, ' '));
    drawn_ = bar.size();
  }
  void print(const std::string& line) {
    const std::scoped_lock lock(mutex_);
    if (silent_) return;
    fmt::print(stderr, "{}\n", line);
    std::fflush(stderr);
  }
  void clear(bool for_ever = false) {
    const std::scoped_lock lock(mutex_);
    silent_ = silent_ || for_ever;
    if (drawn_ > 0) write(std::string(drawn_, ' '));
    drawn_ = 0;
  }

 private:
  /// The cursor comes back to the begin of the line: what mpirun prints for itself, as when a rank dies, replaces a
  /// bar.
  void write(const std::string& line) { terminal_->write('\r' + line + '\r'); }

  std::mutex mutex_;
  bool looked_ = false, silent_ = false;
  std::optional<Terminal> terminal_;
  std::size_t drawn_ = 0;
};

}  // namespace

std::string progress_line(const std::string& label, const ProgressState& state) {
  return fmt::format("{}: {}", label, fmt::join(parts_of(state), ""));
}

std::string progress_bar(const std::string& label, const ProgressState& state, std::size_t width) {
  constexpr std::size_t least_bar = 10, most_bar = 40, brackets = 4;  // " [" and "] "
  auto parts = parts_of(state);
  const auto room_beside = [&](std::size_t label_size) {
    const auto taken = label_size + brackets + fmt::format("{}", fmt::join(parts, "")).size();
    return width - std::min(width, taken);
  };
  if (state.total_bytes > 0) {
    const auto name = shorten(label, width / 2);
    for (auto part = parts.rbegin(); part + 1 != parts.rend() && room_beside(name.size()) < least_bar; ++part)
      part->clear();
    const auto bar = std::min(most_bar, room_beside(name.size()));
    const auto filled = std::min(state.done_bytes, state.total_bytes) * bar / state.total_bytes;
    if (bar >= least_bar)
      return fmt::format("{} [{:<{}}] {}", name, std::string(filled, '#'), bar, fmt::join(parts, ""));
  }
  const auto end = ' ' + parts[0];
  return shorten(shorten(label, width - std::min(width, end.size())) + end, width);
}

Progress::Progress(std::string label, std::uint64_t total_bytes, ProgressPace pace)
    : label_(printable(label)), total_(total_bytes), pace_(pace) {
  if (launch_rank() == 0) thread_ = std::jthread([this](const std::stop_token& stop) { show(stop); });
}

Progress::~Progress() = default;  // the thread is stopped and joined first: it is the last member

void Progress::restart() noexcept {
  const std::scoped_lock lock(mutex_);  // the thread waits
  start_ = Clock::now();
  done_ = 0;
  Screen::get().clear();
}

void Progress::silence() noexcept {
  Screen::get().clear(true);
}

ProgressState Progress::state() const noexcept {
  return {done_, total_, std::chrono::duration<double>(Clock::now() - start_.load()).count()};
}

void Progress::show(const std::stop_token& stop) {
  auto& screen = Screen::get();
  std::unique_lock lock(mutex_);
  auto due = start_.load() + pace_.first_bar;
  while (!wake_.wait_until(lock, stop, due, [&] { return stop.stop_requested(); })) {
    if (noted_signal() != 0) break;  // what ends the job prints, too
    const bool terminal = screen.has_terminal();
    const auto now = Clock::now(), first = start_.load() + (terminal ? pace_.first_bar : pace_.line);
    if (now < first) {
      due = first;
    } else if (terminal) {
      screen.draw(label_, state());
      due = now + pace_.bar;
    } else {
      screen.print(progress_line(label_, state()));
      due = now + pace_.line;
    }
  }
  screen.clear();
}

}  // namespace weightcast
