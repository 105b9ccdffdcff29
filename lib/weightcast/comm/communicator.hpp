#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "weightcast/comm/stage_clock.hpp"
#include "weightcast/core/deadline.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/core/unique_handle.hpp"

/// MPI with deadlines: every wait is a poll that gives up, and every failure is shared before anybody throws.
/// The library takes a communicator, never MPI_COMM_WORLD. Message sizes are bytes; counts over 1 GiB are cut.
namespace weightcast {

struct CommTraits {
  using Type = MPI_Comm;
  static MPI_Comm null() noexcept { return MPI_COMM_NULL; }
  static void close(MPI_Comm comm) noexcept;
};

/// Initialises MPI (thread level multiple) and finalizes it at the end of the scope; not while an exception unwinds,
/// because the others are still inside MPI: then the process must end by abort(). At most one per process.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(MpiEnvironment&&) = delete;
};

/// Ends every rank of the job with this exit status. Does not return.
[[noreturn]] void abort_job(ExitCode code) noexcept;

/// Owner of a communicator. All operations are collective over it and blocking, with a deadline: Error(deadline) names
/// the operation; an MPI error is Error(unavailable). After such an error the communicator must not be used again.
class Communicator {
 public:
  Communicator() = default;
  /// A private duplicate of `comm`.
  static Communicator duplicate(MPI_Comm comm, Deadline deadline = Deadline::after(60));
  /// The same of all ranks of the job: for programs, and for callers of the library who ask for it by name.
  static Communicator duplicate_world(Deadline deadline = Deadline::after(60));
  /// Another one of this, with its stage clock.
  Communicator duplicate(Deadline deadline) const;
  /// Sub-communicator of all ranks with the same `color` (negative: none of it for this rank), ranked by `key`.
  Communicator split(int color, int key, Deadline deadline) const;
  /// The ranks on this host, in the order of this communicator.
  Communicator split_by_host(Deadline deadline) const;

  MPI_Comm get() const noexcept { return comm_.get(); }
  explicit operator bool() const noexcept { return static_cast<bool>(comm_); }
  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }
  /// From now on stages over this communicator and those made of it are noted on `clock`, which must outlive them.
  void note_stages(StageClock& clock) noexcept { clock_ = &clock; }
  StageClock* stage_clock() const noexcept { return clock_; }
  /// Whether this host has fewer cores than a waiting and a working rank each need. Found out by duplicate(); parts
  /// know it from the whole.
  bool crowded() const noexcept { return crowded_; }

  void barrier(Deadline deadline) const;
  void broadcast(std::span<std::byte> data, int root, Deadline deadline) const;
  std::uint64_t max(std::uint64_t value, Deadline deadline) const;
  std::uint64_t sum(std::uint64_t value, Deadline deadline) const;
  /// Everybody's values added up one by one, modulo 2^64, in place; as many on each rank.
  void sum(std::span<std::uint64_t> values, Deadline deadline) const;
  /// Everybody's text, by rank.
  std::vector<std::string> all_gather(std::string_view text, Deadline deadline) const;
  /// Everybody's plain values, as many as each has, by rank.
  template <typename T>
  std::vector<std::vector<T>> all_gather_values(std::span<const T> values, Deadline deadline) const;
  /// To `root`: every rank's `data`, all of the same size, by rank; elsewhere an empty vector.
  std::vector<std::byte> gather(std::span<const std::byte> data, int root, Deadline deadline) const;

 private:
  Communicator(MPI_Comm comm, bool crowded);
  UniqueHandle<CommTraits> comm_;
  int rank_ = 0, size_ = 1;
  bool crowded_ = true;
  StageClock* clock_ = nullptr;
};

template <typename T>
std::vector<std::vector<T>> Communicator::all_gather_values(std::span<const T> values, Deadline deadline) const {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<std::vector<T>> result;
  for (const auto& bytes : all_gather({reinterpret_cast<const char*>(values.data()), values.size_bytes()}, deadline)) {
    result.emplace_back(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(result.back().data(), bytes.data(), bytes.size());
  }
  return result;
}

/// Waits until all `requests` of `comm` are complete, polling; `idle` (may be empty) is called between polls and
/// returns whether it did something useful. Error(deadline) naming `what` when time runs out (the requests are then
/// abandoned).
void wait_all(const Communicator& comm, std::span<MPI_Request> requests, Deadline deadline, std::string_view what,
              FunctionRef<bool()> idle = {});

/// Called again and again during long waits; throws when the wait is in vain. May be empty.
using Watch = FunctionRef<void()>;

/// Runs `local` on every rank of `comm`, then makes all ranks throw if any of them did, or none. All throw the error of
/// the lowest guilty rank, its origin naming rank and `stage`; where several have failed, the message lists every one
/// of them with its reason (waits that ran out only when there is no other cause). All is over by `deadline`, the work
/// and the agreement: `local` may take the earlier deadline by which it has to end (a fifth of the time, at most a
/// second, is kept for agreeing). A rank that does not answer is itself the error (Error(deadline) of Reach::lost: such
/// a job cannot be finalized).
template <typename Local>
void agree(const Communicator& comm, std::string_view stage, Deadline deadline, Local&& local, Watch watch = {});

/// agree() without its conveniences.
void agree_on(const Communicator& comm, std::string_view stage, Deadline deadline, FunctionRef<void(Deadline)> local,
              Watch watch);

template <typename Local>
void agree(const Communicator& comm, std::string_view stage, Deadline deadline, Local&& local, Watch watch) {
  if constexpr (std::is_invocable_v<Local&, Deadline>) {
    agree_on(comm, stage, deadline, local, watch);
  } else {
    agree_on(
        comm, stage, deadline, [&](Deadline) { local(); }, watch);
  }
}

/// Error(unavailable) with MPI's own text if an MPI call failed.
void check_mpi(int status, std::string_view call);

/// What a waiting rank does between two polls: yields, and when the wait gets long naps, a quarter of the time waited
/// so far, at most 200 us.
class Patience {
 public:
  /// For a wait of 0.2 ms or more, for whatever may need a core.
  Patience() noexcept = default;
  /// For other ranks of `comm`. When naps begin depends on whether the host's ranks have a core each: where they do
  /// not, a yielding rank keeps the core from the one that it waits for.
  explicit Patience(const Communicator& comm) noexcept;
  void pause() noexcept;

 private:
  double spin_s_ = 2e-4;
  Deadline::Clock::time_point begin_ = Deadline::Clock::now();
};

}  // namespace weightcast
