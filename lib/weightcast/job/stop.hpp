#pragma once

#include <string_view>

#include "weightcast/core/error.hpp"
#include "weightcast/core/function_ref.hpp"

/// Being asked to end from outside. Signals are handled only when a program asks for it.
namespace weightcast {

/// From now on SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the process, and it leaves no temporary files. A limit on the
/// size of files is an error where it is met and no signal.
void catch_signals();
/// From now on they are only noted, and the process has to look whether it should end; but what takes long to write is
/// removed at once (who sent SIGTERM may not wait long), and a second SIGINT ends the process.
void note_signals() noexcept;
/// Back to before; a signal that was noted ends the process now, except SIGUSR1, which is a wish and not an order.
void obey_signals();
/// The same for signals that are still to come.
void obey_coming_signals() noexcept;

/// The last signal that was noted, or 0.
int noted_signal() noexcept;
/// Whether the launcher told this rank to end (it stops all ranks then, and kills them a second later).
bool told_by_launcher() noexcept;
/// Ends this rank at once, as nothing else is left to do: MPI_Finalize waits for a launcher that no longer answers.
[[noreturn]] void leave_now(ExitCode code) noexcept;
/// Waits until the standard output takes a line; false when a signal is noted meanwhile. mpirun that is told to end
/// reads no more of what its ranks print, and tells them a second later: a rank in a full pipe would not hear of it.
bool ready_to_print() noexcept;
/// The end of a job that was asked to stop by this signal: Error(deadline), with what to do to get all of it.
Error stopped_by(int number, std::string_view when);

/// That Error when a signal was noted. Local: for reading and writing weights, which takes long, inside an agree().
void stop_if_asked(std::string_view when = "while it read weights");

/// Runs a command that is not a job of several ranks: signals are noted, and `body` looks by stop_if_asked(). Any error
/// after a signal is that Error.
void run_until_asked(std::string_view when, FunctionRef<void()> body);

}  // namespace weightcast
