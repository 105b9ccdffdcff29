#include "commands/container_notes.hpp"

#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "weightcast/core/bytes.hpp"

namespace weightcast {
namespace {

constexpr const char* copy_variable = "OMPI_MCA_btl_vader_single_copy_mechanism";
constexpr const char* folder_variable = "OMPI_MCA_btl_vader_backing_directory";
constexpr std::uint64_t segment_bytes = 4 * mebibyte;  // of each rank, unless it was told otherwise

/// Why this rank cannot read its neighbour's memory as Open MPI does for large messages, or nothing.
std::string why_no_reading(const Communicator& local, Deadline deadline) {
  struct Place {
    std::int64_t pid;
    const void* data;
    std::uint64_t value;
  };
  const std::uint64_t secret = 0x7765696768740000 + static_cast<std::uint64_t>(local.rank());
  const Place own{::getpid(), &secret, secret};
  const auto all = local.all_gather(std::string_view(reinterpret_cast<const char*>(&own), sizeof own), deadline);
  std::string reason;
  Place next{};
  std::memcpy(&next, all[static_cast<std::size_t>((local.rank() + 1) % local.size())].data(), sizeof next);
  std::uint64_t seen = 0;
  const iovec here{&seen, sizeof seen}, there{const_cast<void*>(next.data), sizeof seen};
  if (::process_vm_readv(static_cast<pid_t>(next.pid), &here, 1, &there, 1, 0) != sizeof seen) {
    reason = std::strerror(errno);
  } else if (seen != next.value) {
    reason = "another process has its id";
  }
  local.barrier(deadline);  // `secret` has been read
  return reason;
}

/// Whether processes of a container see ids of their own: the first namespace of a machine has this number.
bool own_process_ids() {
  std::array<char, 64> name{};
  const auto length = ::readlink("/proc/self/ns/pid", name.data(), name.size() - 1);
  return length > 0 && std::string_view(name.data()) != "pid:[4026531836]";
}

/// Files of Open MPI in `folder`: vader_segment.HOST.USER.JOB.RANK.
std::size_t segments_in(const char* folder) {
  std::size_t count = 0;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none))
    if (entry.path().filename().string().starts_with("vader_segment.")) ++count;
  return count;
}

}  // namespace

std::vector<std::string> container_notes(const Communicator& world, Deadline deadline) {
  std::vector<std::string> notes;
  const auto local = world.split_by_host(deadline);
  const auto reason = why_no_reading(local, deadline);
  const char* const mechanism = std::getenv(copy_variable);
  if (!reason.empty() && (mechanism == nullptr || std::string_view(mechanism) != "none")) {
    notes.push_back(
        fmt::format("no rank may read another's memory ({}: no ptrace rights in this container): Open MPI prints "
                    "\"Read -1\" for each large message; set {}=none",
                    reason, copy_variable));
  }
  if (::access("/dev/shm", W_OK | X_OK) != 0) {
    notes.push_back(fmt::format("/dev/shm may not be written ({}): Open MPI needs it where all ranks open a snapshot",
                                std::strerror(errno)));
    return notes;
  }
  if (std::getenv(folder_variable) != nullptr) return notes;
  const auto ranks = static_cast<std::uint64_t>(local.size());
  struct statvfs space {};
  if (::statvfs("/dev/shm", &space) == 0) {
    const auto size = std::uint64_t{space.f_blocks} * space.f_frsize;
    if (size < ranks * segment_bytes) {
      notes.push_back(
          fmt::format("/dev/shm has {} for {} ranks, each of which may take {} of it and then ends by SIGBUS: "
                      "docker run --shm-size, or set {}=/tmp",
                      format_size(size), ranks, format_size(segment_bytes), folder_variable));
    }
  }
  if (own_process_ids() && segments_in("/dev/shm") > ranks) {
    notes.push_back(
        fmt::format("another job has files in /dev/shm: if it is that of another container, both use the same "
                    "names and crash; set {} to a folder of this container's own, like /tmp",
                    folder_variable));
  }
  return notes;
}

}  // namespace weightcast
