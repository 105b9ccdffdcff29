#include <algorithm>
#include <array>
#include <cstring>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/core/file.hpp"

// Agreement is a star around rank 0 and not an all-reduce, because rank 0 then knows who is missing. Everybody reports
// whether it failed; rank 0 picks the lowest guilty rank and answers everybody; the reason travels only when there is
// one.
namespace weightcast {
namespace {

constexpr int tag_outcome = 9001, tag_reason = 9002, tag_verdict = 9003, tag_verdict_reason = 9004;

/// What is sent of an Error: fixed size, so that nothing is allocated between ranks.
struct Reason {
  std::int32_t code = 0, rank = -1, lost = 0;
  std::array<char, 32> stage{};
  std::array<char, 84> host{};
  std::array<char, 512> hint{};
  std::array<char, 3456> message{};
};
static_assert(std::is_trivially_copyable_v<Reason>);

template <std::size_t N>
void store(std::array<char, N>& field, std::string_view text) {
  field.fill(0);
  const auto size = std::min(text.size(), N - 1);
  std::copy_n(text.begin(), size, field.begin());
  if (text.size() > size) std::copy_n("...", 3, field.begin() + static_cast<std::ptrdiff_t>(size) - 3);
}

Reason make_reason(const Error& error, std::string_view stage, int rank, const std::string& host) {
  Reason reason;
  reason.code = static_cast<std::int32_t>(error.code());
  // An error that another agreement has already placed keeps its origin.
  reason.rank = error.origin().rank >= 0 ? error.origin().rank : rank;
  reason.lost = error.reach() == Error::Reach::lost ? 1 : 0;
  store(reason.stage, error.origin().stage.empty() ? stage : error.origin().stage);
  store(reason.host, error.origin().host.empty() ? host : error.origin().host);
  store(reason.hint, error.hint());
  store(reason.message, error.what());
  return reason;
}

[[noreturn]] void throw_reason(const Reason& reason) {
  Error error(static_cast<ExitCode>(reason.code), reason.message.data(), reason.hint.data());
  error.origin() = {reason.stage.data(), reason.rank, reason.host.data(), {}};
  error.set_reach(reason.lost != 0 ? Error::Reach::lost : Error::Reach::everybody);
  throw error;
}

Error silence(std::string_view who, std::string_view stage) {
  Error error(ExitCode::deadline, fmt::format("{} did not answer in time at stage {}", who, stage),
              "look for a stopped, swapping or dead process there, or give it more time with --timeout");
  error.set_reach(Error::Reach::lost);
  return error;
}

void send(const Communicator& comm, const void* data, std::size_t bytes, int peer, int tag, Deadline deadline) {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, comm.get(), &request), "MPI_Isend");
  wait_all({&request, 1}, deadline, "sending an outcome");
}

void receive(const Communicator& comm, void* data, std::size_t bytes, int peer, int tag, Deadline deadline) {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, comm.get(), &request), "MPI_Irecv");
  try {
    wait_all({&request, 1}, deadline, "waiting for an outcome");
  } catch (const Error&) {  // `data` must not be written after we return
    MPI_Cancel(&request);
    MPI_Request_free(&request);
    throw;
  }
}

/// Rank 0's side: the verdict over everybody's outcome, sent to all who still answer.
void judge(const Communicator& comm, std::string_view stage, Deadline deadline, Reason reason) {
  const auto patience = deadline.plus(grace_s);
  for (int peer = 1; peer < comm.size(); ++peer) {
    try {
      std::int32_t failed = 0;
      receive(comm, &failed, sizeof failed, peer, tag_outcome, patience);
      if (failed == 0) continue;
      Reason theirs;
      receive(comm, &theirs, sizeof theirs, peer, tag_reason, patience.plus(1));
      // A failure with a cause outranks a wait that only ran out because of it.
      const bool only_waited =
          reason.code == static_cast<std::int32_t>(ExitCode::deadline) && theirs.code != reason.code;
      if (reason.code == 0 || only_waited) reason = theirs;
    } catch (const Error& error) {
      const bool late = error.code() == ExitCode::deadline;
      auto silent = late ? silence(fmt::format("rank {}", peer), stage) : error;
      silent.set_reach(Error::Reach::lost);
      reason = make_reason(silent, stage, peer, {});
    }
  }
  for (int peer = 1; peer < comm.size(); ++peer) {
    if (reason.lost != 0 && reason.rank == peer) continue;
    send(comm, &reason.code, sizeof reason.code, peer, tag_verdict, patience.plus(1));
    if (reason.code != 0) send(comm, &reason, sizeof reason, peer, tag_verdict_reason, patience.plus(1));
  }
  if (reason.code != 0) throw_reason(reason);
}

/// Everybody else's side.
void report(const Communicator& comm, std::string_view stage, Deadline deadline, const Reason& own) {
  Reason reason;
  try {
    const auto patience = deadline.plus(2 * grace_s);
    send(comm, &own.code, sizeof own.code, 0, tag_outcome, patience);
    if (own.code != 0) send(comm, &own, sizeof own, 0, tag_reason, patience);
    std::int32_t failed = 0;
    receive(comm, &failed, sizeof failed, 0, tag_verdict, patience);
    if (failed == 0) return;
    receive(comm, &reason, sizeof reason, 0, tag_verdict_reason, patience);
  } catch (const Error& error) {
    auto lost = error.code() == ExitCode::deadline ? silence("rank 0", stage) : error;
    lost.set_reach(Error::Reach::lost);
    reason = make_reason(lost, stage, 0, {});
  }
  throw_reason(reason);
}

}  // namespace

void agree(const Communicator& comm, std::string_view stage, Deadline deadline, FunctionRef<void()> local) {
  Reason own;
  try {
    local();
  } catch (...) {
    own = make_reason(current_error(), stage, comm.rank(), host_name());
  }
  if (comm.rank() == 0) {
    judge(comm, stage, deadline, own);
  } else {
    report(comm, stage, deadline, own);
  }
}

}  // namespace weightcast
