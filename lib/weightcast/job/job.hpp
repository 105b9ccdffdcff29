#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/comm/pulse.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/telemetry/report.hpp"

/// What programs share that run as a job of trainer and engine ranks, which ends on all ranks with one exit status.
/// This room is for programs: it prints, has signals handled and ends the process; no other room ever does.
namespace weightcast {

/// The name of an output as it was when the program began. What is wrong with it is said later, when all ranks are
/// there to hear it; but of two jobs that run at once and write one name, each must have looked before the other wrote.
class EarlyName {
 public:
  /// Nothing when `path` is empty.
  explicit EarlyName(const std::string& path, Existing existing = Existing::replace) noexcept;

  explicit operator bool() const noexcept { return name_ || failure_; }
  /// What OutputName's constructor threw.
  const OutputName& get() const;
  /// Finds out before anything moves whether a report can be written there. Error(cant_create).
  void probe() const;

 private:
  std::optional<OutputName> name_;
  std::exception_ptr failure_;
};

/// The names of the memory that the ranks of a machine share: Open MPI has files in /dev/shm for it, and a rank that is
/// killed cannot remove its own. Without names the memory goes with the last process.
class SharedNames {
 public:
  /// Removes the names. Every rank must have been in a barrier of all: by then each has mapped what the others share.
  void remove();
  /// Gives this rank's own back, empty, for MPI_Finalize, which complains when it does not find it (of a launcher that
  /// does not say which rank of the machine this is: all). A signal that ends the process removes it, and so does the
  /// end of this object, which must come after MPI_Finalize. Not others': they may still be on their way there.
  void restore();

 private:
  std::vector<std::string> paths_;
  std::vector<std::unique_ptr<Unfinished>> restored_;
};

/// What is done at the end with the error that ended the job, or without one: the report.
using Finish = std::function<void(const std::optional<Error>&)>;
/// The same when the job did not notice in time that the launcher ends it: it must not touch what the job changes.
using FinishLate = std::function<void(const Error&)>;

/// A running MPI job. At most one per process.
class Job {
 public:
  /// Initialises MPI. From now on signals that ask to end are only noted: see stop_if_asked(). `finish` runs once at
  /// the end, on rank 0 or, when that is lost, on the lowest rank that runs; in case MPI itself hangs, on another
  /// thread. `trainers`: of the ranks, as many are the trainer.
  Job(double timeout_s, Finish finish, FinishLate finish_late, std::uint64_t trainers = 1);
  ~Job();
  Job(Job&&) = delete;

  const Communicator& world() const noexcept { return world_; }
  /// Whether this is rank 0, which speaks for all: it prints and writes.
  bool first() const noexcept { return world_.rank() == 0; }
  /// Of a wait or a stage that begins now. A little earlier than the timeout of the job, so that who is missing can
  /// still be found out.
  Deadline deadline() const noexcept { return Deadline::after(timeout_s_ - roll_call_s()); }

  /// For work on `bytes` of weights that is not communication (reading, filling, writing), which may take long on a
  /// slow disk: agree() that is not over before such work takes at the slowest pace of a disk that works, but notices
  /// within the timeout when a rank is stopped. `local` is given a Pulse to look at while it works, or takes nothing.
  template <typename Local>
  void agree_patiently(std::string_view stage, std::uint64_t bytes, Local&& local) const {
    const Pulse pulse(world_, std::string(stage), timeout_s_ - roll_call_s());
    const auto deadline = this->deadline().plus(longest_disk_s(bytes));
    agree(
        world_, stage, deadline,
        [&](Deadline work) {
          if constexpr (std::is_invocable_v<Local&, const Pulse&, Deadline>) {
            local(pulse, work);
          } else {
            local(pulse);
          }
        },
        [&] { pulse.check(); });
  }

  /// Runs `body` on every rank, then what finishes the job. Prints the error block once. Returns the exit status, the
  /// same on all ranks; does not return when a rank is lost, or when the launcher told it to end.
  int run(FunctionRef<void()> body);

  /// Error(deadline) on all `callers` when any of them has noted a signal. Collective over them; between updates.
  void stop_if_asked(const Communicator& callers, std::uint64_t updates) const;

 private:
  /// Of waits at the start, which the watchdog ends before.
  Deadline watched_deadline() const noexcept;
  /// Of the timeout, what is kept for finding out who is missing.
  double roll_call_s() const noexcept;
  /// Error(deadline) naming the rank of `ranks` that does not answer any more, if there is one. Collective over those
  /// that do.
  std::optional<Error> find_missing(const Communicator& ranks, const std::string& stage, double seconds) const;
  /// Fills in what `rank` knows of where an error arose.
  void place(Error& error, int rank) const;
  /// The end of a job that has lost a rank, by the lowest rank that runs.
  [[noreturn]] void give_up(const Error& error);
  /// The end of a job that the launcher ends while it is busy.
  [[noreturn]] void end_late();
  /// Ends the job when a call into MPI hangs, or the launcher's signal is not noticed.
  void watch(const std::stop_token& stop);

  /// Whether this is one of several ranks that should be one job and are not (why_alone()), and not the first of them,
  /// which speaks for all.
  bool astray() const;

  double timeout_s_;
  Finish finish_;
  FinishLate finish_late_;
  std::uint64_t trainers_;
  StageClock clock_;
  std::atomic<bool> in_mpi_ = false;      // and so able to look for a missing rank
  std::atomic<bool> woken_ = false;       // this process was stopped
  std::atomic<bool> ending_ = false;      // somebody writes the report
  std::atomic<bool> lost_ = false;        // somebody ends a job that has lost a rank
  std::optional<StageClock::Note> note_;  // of the start and the end
  std::jthread watchdog_;
  SharedNames names_;  // destroyed when MPI is over
  MpiEnvironment environment_;
  Communicator world_, alarm_;  // alarm_: the watchdog's
};

/// How long a report waits for somebody who reads the pipe that it goes to, while the other ranks wait for rank 0.
Deadline reader_deadline(double timeout_s) noexcept;

/// Writes a report of the error and nothing else, if a report is wanted: for Job's FinishLate.
void write_late_report(const EarlyName& name, Report report, const Error& error);

}  // namespace weightcast
