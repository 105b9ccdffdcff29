#include "weightcast/job/job.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <utility>

#include "weightcast/job/error_block.hpp"
#include "weightcast/job/launch.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/plan/roster.hpp"

namespace weightcast {
namespace {

constexpr double wake_s = 0.1;  // until the watchdog knows that this process was stopped
constexpr double kill_s = 5;    // from a launcher's SIGCONT until its signals, on a busy machine
constexpr double turn_s = 3;    // for writing the report and ending the job, before the next rank does it

void show(const Error& error) {
  std::fflush(stdout);
  fmt::print(stderr, "{}", error_block(error, static_cast<int>(error.code())));
  std::fflush(stderr);
}

}  // namespace

EarlyName::EarlyName(const std::string& path, Existing existing) noexcept {
  if (path.empty()) return;
  try {
    name_.emplace(path, existing);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

const OutputName& EarlyName::get() const {
  if (failure_) std::rethrow_exception(failure_);
  return name_.value();
}

void EarlyName::probe() const {
  if (*this && !get().stream()) OutputFile probe(get());
}

void SharedNames::remove() {
  std::ifstream mapped("/proc/self/maps");
  for (std::string line; std::getline(mapped, line);) {
    const auto begin = std::min(line.find('/'), line.size());
    const auto end = std::min(line.rfind(" (deleted)"), line.size());  // another rank was faster
    auto path = line.substr(begin, end - begin);
    if (path.find("/vader_segment.") == std::string::npos) continue;
    ::unlink(path.c_str());
    if (std::ranges::find(paths_, path) == paths_.end()) paths_.push_back(std::move(path));
  }
}

void SharedNames::restore() {
  const char* const local_rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  const auto own_end = local_rank == nullptr ? std::string() : fmt::format(".{}", local_rank);
  for (const auto& path : paths_) {
    if (!path.ends_with(own_end)) continue;
    restored_.push_back(std::make_unique<Unfinished>(path, false));
    UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  }
}

bool Job::astray() const {
  return world_.size() == 1 && launch_size() > 1 && launch_rank() > 0;
}

Job::Job(double timeout_s, Finish finish, FinishLate finish_late, std::uint64_t trainers)
    : timeout_s_(timeout_s),
      finish_(std::move(finish)),
      finish_late_(std::move(finish_late)),
      trainers_(trainers),
      note_(std::in_place, &clock_, "start", Deadline::after(timeout_s)),
      watchdog_([this](const std::stop_token& stop) { watch(stop); }),
      environment_(nullptr, nullptr),
      world_(Communicator::duplicate_world(watched_deadline())),
      alarm_(world_.duplicate(watched_deadline())) {
  world_.barrier(watched_deadline());
  names_.remove();
  world_.note_stages(clock_);
  in_mpi_ = true;
  note_.reset();
  note_signals();
}

Job::~Job() {
  names_.restore();
  obey_coming_signals();
  in_mpi_ = false;
  note_.emplace(&clock_, "leaving MPI", deadline());
}

Deadline Job::watched_deadline() const noexcept {
  return Deadline::after(2 * timeout_s_);
}

double Job::roll_call_s() const noexcept {
  constexpr double most_s = 1, share = 0.2;
  return std::min(most_s, share * timeout_s_);
}

std::optional<Error> Job::find_missing(const Communicator& ranks, const std::string& stage, double seconds) const {
  try {
    agree(ranks, stage, Deadline::after(seconds), [] {});
  } catch (const Error& missing) {
    if (missing.reach() == Error::Reach::lost) return missing;
  }
  return std::nullopt;
}

void Job::place(Error& error, int rank) const {
  auto& origin = error.origin();
  if (origin.rank < 0) origin.rank = rank;
  if (origin.host.empty() && origin.rank == rank) origin.host = host_name();
  origin.role = Roster{.trainers = trainers_}.role(origin.rank);
}

void Job::watch(const std::stop_token& stop) {
  constexpr double late_s = 0.2;
  constexpr auto pause = std::chrono::milliseconds(50);
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  constexpr auto still = std::chrono::seconds(1);
  auto last = Deadline::Clock::now();
  constexpr int pauses = 10;  // of the second that the launcher leaves, half is for noticing and half for the report
  for (int told = 0; !wake.wait_for(lock, stop, pause, [&] { return stop.stop_requested(); });) {
    if (told_by_launcher() && launch_rank() == 0 && ++told >= pauses && !ending_.exchange(true)) end_late();
    const auto now = Deadline::Clock::now();
    if (now - last > still) woken_ = true;
    last = now;
    const auto stage = clock_.overdue(late_s);
    if (!stage) continue;
    std::optional<Error> error;
    if (in_mpi_) error = find_missing(alarm_, *stage, roll_call_s() / 2);
    if (!error) {
      const auto stopped = stopped_rank();
      error.emplace(ExitCode::deadline,
                    fmt::format("{} in the stage: {}",
                                stopped ? fmt::format("rank {} is stopped", *stopped) : "MPI hangs", *stage),
                    "look for a stopped, swapping or dead rank, or give it more time with --timeout");
      error->origin() = {*stage, stopped.value_or(launch_rank()), host_name(), {}};
    }
    give_up(*error);
  }
}

void Job::end_late() {
  Error error = stopped_by(noted_signal(), "while it was busy");
  place(error, launch_rank());
  try {
    finish_late_(error);
  } catch (...) {  // NOLINT(bugprone-empty-catch): the error block is still due
  }
  show(error);
  leave_now(error.code());
}

void Job::give_up(const Error& error) {
  if (lost_.exchange(true)) {  // another thread does it
    while (true) let_others_speak(turn_s);
  }
  const int rank = launch_rank();
  // A rank that was stopped itself and is woken to be killed knows least: the launcher's signal ends it here.
  let_others_speak(wake_s);
  obey_signals();
  if (woken_) let_others_speak(kill_s);
  const int before = rank - (error.origin().rank < rank ? 1 : 0);
  if (before > 0) let_others_speak(turn_s * before);
  auto placed = error;
  place(placed, rank);
  try {
    finish_(placed);
  } catch (...) {  // NOLINT(bugprone-empty-catch): what follows says more
  }
  show(placed);
  if (in_mpi_) abort_job(placed.code());
  std::_Exit(static_cast<int>(placed.code()));  // the launcher ends the others
}

int Job::run(FunctionRef<void()> body) {
  std::optional<Error> error;
  try {
    agree(world_, "start", deadline(), [&] {
      if (const auto reason = world_.size() == 1 ? why_alone() : std::nullopt) throw *reason;
    });
    body();
  } catch (...) {
    error = current_error();
  }
  while (ending_.exchange(true)) let_others_speak(turn_s);  // the watchdog does it
  const auto shared = [&] { return !error || error->reach() == Error::Reach::everybody; };
  if (!shared() && error->reach() == Error::Reach::local && error->code() == ExitCode::deadline) {
    const auto stage = error->origin().stage.empty() ? "waiting" : error->origin().stage;
    if (const auto missing = find_missing(world_, stage, roll_call_s())) error = missing;
  }
  if (error) place(*error, world_.rank());
  if (!shared()) give_up(*error);
  try {
    agree(world_, "report", deadline(), [&] {
      if (first() && !astray()) finish_(error);
    });
  } catch (...) {
    const auto failure = current_error();
    if (!error || failure.reach() == Error::Reach::lost) error = failure;
    place(*error, world_.rank());
    if (!shared()) give_up(*error);
  }
  if (!error && told_by_launcher()) leave_now(ExitCode::ok);
  if (!error) return 0;
  if (astray()) {
    let_others_speak(1.0);
  } else if (first()) {
    show(*error);
  }
  if (told_by_launcher()) leave_now(error->code());
  return static_cast<int>(error->code());
}

Deadline reader_deadline(double timeout_s) noexcept {
  constexpr double longest_s = 10;
  return Deadline::after(std::min(timeout_s / 4, longest_s));
}

void write_late_report(const EarlyName& name, Report report, const Error& error) {
  constexpr double reader_s = 0.1;
  if (!name) return;
  report.error = report_error(error);
  report.exit_code = error.code();
  write_report(name.get(), report, Deadline::after(reader_s));
}

void Job::stop_if_asked(const Communicator& callers, std::uint64_t updates) const {
  agree(callers, "next update", deadline(), [&] {
    if (const int number = noted_signal(); number != 0)
      throw stopped_by(number, fmt::format("after {} updates", updates));
  });
}

}  // namespace weightcast
