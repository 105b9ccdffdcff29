#include <algorithm>
#include <vector>

#include "weightcast/comm/message.hpp"
#include "weightcast/comm/reason.hpp"
#include "weightcast/core/file.hpp"

// Agreement is a star around rank 0 and not an all-reduce, because rank 0 then knows who is missing. Everybody reports
// whether it failed; rank 0 picks the lowest guilty rank, adds the reasons of the others and answers everybody; reasons
// travel only when there are any.
//
// Work and agreement share one deadline. The work has to end a little before it, so that those who waited in vain can
// still say so; then rank 0 gives up on who is silent; and last everybody else on rank 0.
namespace weightcast {
namespace {

constexpr int tag_outcome = 9001, tag_reason = 9002, tag_verdict = 9003, tag_verdict_reason = 9004;

/// Of the time that a stage has, what is kept for agreeing; half of it for the way back.
double agreement_s(Deadline deadline) {
  constexpr double most_s = 1, share = 0.2;
  return std::min(most_s, share * deadline.remaining_s());
}

template <typename T>
void send(const Communicator& comm, const T& value, int peer, int tag, Deadline deadline) {
  Message::send(comm, bytes_of(value), peer, tag).wait(deadline, "sending an outcome");
}

template <typename T>
T receive(const Communicator& comm, int peer, int tag, Deadline deadline, Watch watch) {
  T value;
  Message::receive(comm, writable_bytes_of(value), peer, tag).wait(deadline, "waiting for an outcome", [&] {
    if (watch) watch();
    return false;
  });
  return value;
}

/// What is thrown when talking to `peer` ended in `error`.
Reason lost_reason(const Error& error, int peer, std::string_view stage) {
  if (error.reach() == Error::Reach::lost) return make_reason(error, stage, peer, {});  // the watch knows who it is
  auto lost = error.code() == ExitCode::deadline ? silence(peer, stage) : error;
  lost.set_reach(Error::Reach::lost);
  return make_reason(lost, stage, peer, {});
}

/// Rank 0's side: the verdict over everybody's outcome, sent to all who still answer.
void judge(const Communicator& comm, std::string_view stage, Deadline patience, Deadline deadline, const Reason& own,
           Watch watch) {
  std::vector<Reason> reasons;  // empty, and so without memory, unless somebody failed
  if (own.code != 0) reasons.push_back(own);
  for (int peer = 1; peer < comm.size(); ++peer) {
    try {
      if (receive<std::int32_t>(comm, peer, tag_outcome, patience, watch) == 0) continue;
      reasons.push_back(receive<Reason>(comm, peer, tag_reason, deadline, {}));
    } catch (const Error& error) {
      reasons.push_back(lost_reason(error, peer, stage));
      if (reasons.back().rank != peer) break;  // nobody will answer before the job is over
    }
  }
  const auto reason = verdict(std::move(reasons), comm.size());
  auto outcome = reason;
  for (int peer = 1; peer < comm.size(); ++peer) {
    if (reason.lost != 0 && reason.rank == peer) continue;
    try {
      send(comm, reason.code, peer, tag_verdict, deadline);
      if (reason.code != 0) send(comm, reason, peer, tag_verdict_reason, deadline);
    } catch (const Error& error) {  // it answered, and then stopped
      if (outcome.lost == 0) outcome = lost_reason(error, peer, stage);
    }
  }
  if (outcome.code != 0) throw_reason(outcome);
}

/// Everybody else's side.
void report(const Communicator& comm, std::string_view stage, Deadline deadline, const Reason& own, Watch watch) {
  Reason reason;
  try {
    send(comm, own.code, 0, tag_outcome, deadline);
    if (own.code != 0) send(comm, own, 0, tag_reason, deadline);
    if (receive<std::int32_t>(comm, 0, tag_verdict, deadline, watch) == 0) return;
    reason = receive<Reason>(comm, 0, tag_verdict_reason, deadline, {});
  } catch (const Error& error) {
    reason = lost_reason(error, 0, stage);
  }
  throw_reason(reason);
}

}  // namespace

void agree_on(const Communicator& comm, std::string_view stage, Deadline deadline, FunctionRef<void(Deadline)> local,
              Watch watch) {
  const StageClock::Note note(comm.stage_clock(), stage, deadline);
  const auto reserve_s = agreement_s(deadline);
  Reason own;
  try {
    local(deadline.plus(-reserve_s));
  } catch (...) {
    own = make_reason(current_error(), stage, comm.rank(), host_name());
  }
  if (comm.rank() == 0) {
    judge(comm, stage, deadline.plus(-reserve_s / 2), deadline, own, watch);
  } else {
    report(comm, stage, deadline, own, watch);
  }
}

}  // namespace weightcast
