#pragma once

#include <string>
#include <string_view>

#include "weightcast/core/error.hpp"

/// Being asked to end from outside. Only programs set signal handlers, never the library.
namespace weightcast {

/// From now on SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the process, and it leaves no temporary files.
void catch_signals();
/// From now on they are only noted, and the process has to look whether it should end.
void note_signals() noexcept;
/// Back to before; a signal that was noted ends the process now, except SIGUSR1, which is a wish and not an order.
void obey_signals();

/// The last signal that was noted, or 0.
int noted_signal() noexcept;
/// Waits until the standard output takes a line; false when a signal is noted meanwhile. mpirun that is told to end
/// reads no more of what its ranks print, and tells them a second later: a rank in a full pipe would not hear of it.
bool ready_to_print() noexcept;
/// The end of a job that was asked to stop by this signal: Error(deadline), with what to do to get all of it.
Error stopped_by(int number, std::string_view when);

/// That Error when a signal was noted. Local: for reading weights, which takes long, inside an agree().
void stop_if_asked();

}  // namespace weightcast
