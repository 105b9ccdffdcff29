#pragma once

#include <cstdint>
#include <string>

/// How much memory there is left to take before Linux kills somebody: on the machine, and in the control groups (those
/// of a container, of a Slurm job, of a systemd unit) that this process is in.
namespace weightcast {

/// What the tightest of all limits leaves.
struct MemoryRoom {
  std::uint64_t limit_bytes = UINT64_MAX;  ///< all there is; UINT64_MAX when nobody says
  std::uint64_t free_bytes = UINT64_MAX;   ///< of that: not in use, or file cache that is given back when it is needed
  std::string group;                       ///< the control group's folder that sets the limit; empty for the machine
  bool grows = false;                      ///< a sandbox (gVisor) whose machine has more when more is used

  /// What weights may take of `free_bytes`: a sixteenth of the limit, at most 512 MiB, is kept for everything else, and
  /// for other ranks that look at the same moment.
  std::uint64_t spare_bytes() const noexcept;
  /// "the control group /sys/fs/cgroup/job allows 600 MB, 431 MB are in use, and 37.5 MB are kept for other things".
  std::string describe() const;
};

/// Looks now. Considers MemAvailable, and every level of the control groups, version 1 and 2, that can be seen from
/// here; what cannot be read sets no limit. `root` comes before every path (of tests).
MemoryRoom memory_room(const std::string& root = {});

}  // namespace weightcast
