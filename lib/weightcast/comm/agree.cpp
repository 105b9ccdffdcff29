#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/core/file.hpp"

// Agreement is a star around rank 0 and not an all-reduce, because rank 0 then knows who is missing. Everybody reports
// whether it failed; rank 0 picks the lowest guilty rank, adds the reasons of the others and answers everybody; reasons
// travel only when there are any.
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

/// What is thrown when talking to `peer` ended in `error`.
Reason lost_reason(const Error& error, int peer, std::string_view stage) {
  auto lost = error.code() == ExitCode::deadline ? silence(fmt::format("rank {}", peer), stage) : error;
  lost.set_reach(Error::Reach::lost);
  return make_reason(lost, stage, peer, {});
}

/// "rank 3", "ranks 1-4, 7".
std::string name_ranks(const std::vector<int>& sorted) {
  std::string text;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const auto first = i;
    while (i + 1 < sorted.size() && sorted[i + 1] == sorted[i] + 1) ++i;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", sorted[first]);
    if (i > first) text += fmt::format("-{}", sorted[i]);
  }
  return (sorted.size() == 1 ? "rank " : "ranks ") + text;
}

/// What everybody is told: the reason of the lowest guilty rank, with the reasons of all others in its message.
Reason verdict(std::vector<Reason> reasons, int ranks) {
  if (reasons.empty()) return {};
  for (const auto& reason : reasons) {
    if (reason.lost != 0) return reason;
  }
  // A failure with a cause outranks a wait that only ran out because of it.
  const auto waited = [](const Reason& reason) { return reason.code == static_cast<int>(ExitCode::deadline); };
  if (!std::all_of(reasons.begin(), reasons.end(), waited)) std::erase_if(reasons, waited);
  std::vector<std::pair<std::string, std::vector<int>>> by_message;
  for (const auto& reason : reasons) {
    const std::string message = reason.message.data();
    auto entry = std::find_if(by_message.begin(), by_message.end(), [&](const auto& e) { return e.first == message; });
    if (entry == by_message.end()) entry = by_message.insert(entry, {message, {}});
    // An error that all have met already is reported by each, but has one origin.
    const auto place = std::lower_bound(entry->second.begin(), entry->second.end(), reason.rank);
    if (place == entry->second.end() || *place != reason.rank) entry->second.insert(place, reason.rank);
  }
  auto lead = reasons.front();
  const auto guilty = by_message.front().second.size();
  if (by_message.size() == 1 && (guilty == 1 || guilty == static_cast<std::size_t>(ranks))) return lead;
  std::string text;
  for (const auto& [message, who] : by_message)
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", name_ranks(who), message);
  store(lead.message, text);
  return lead;
}

/// Rank 0's side: the verdict over everybody's outcome, sent to all who still answer.
void judge(const Communicator& comm, std::string_view stage, Deadline deadline, const Reason& own) {
  const auto patience = deadline.plus(grace_s);
  std::vector<Reason> reasons;  // empty, and so without memory, unless somebody failed
  if (own.code != 0) reasons.push_back(own);
  for (int peer = 1; peer < comm.size(); ++peer) {
    try {
      std::int32_t failed = 0;
      receive(comm, &failed, sizeof failed, peer, tag_outcome, patience);
      if (failed == 0) continue;
      Reason theirs;
      receive(comm, &theirs, sizeof theirs, peer, tag_reason, patience.plus(1));
      reasons.push_back(theirs);
    } catch (const Error& error) {
      reasons.push_back(lost_reason(error, peer, stage));
    }
  }
  const auto reason = verdict(std::move(reasons), comm.size());
  auto outcome = reason;
  for (int peer = 1; peer < comm.size(); ++peer) {
    if (reason.lost != 0 && reason.rank == peer) continue;
    try {
      send(comm, &reason.code, sizeof reason.code, peer, tag_verdict, patience.plus(1));
      if (reason.code != 0) send(comm, &reason, sizeof reason, peer, tag_verdict_reason, patience.plus(1));
    } catch (const Error& error) {  // it answered, and then stopped
      if (outcome.lost == 0) outcome = lost_reason(error, peer, stage);
    }
  }
  if (outcome.code != 0) throw_reason(outcome);
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
    reason = lost_reason(error, 0, stage);
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
