#include <algorithm>
#include <utility>

#include "weightcast/update/group_state.hpp"

namespace weightcast {
namespace {

/// What a trainer rank was asked for, in words.
std::string describe(const UpdateClaim& claim) {
  switch (claim.kind) {
    case UpdateKind::rollback: return fmt::format("goes back to version {}", claim.version);
    case UpdateKind::unchanged: return fmt::format("publishes version {} again", claim.version);
    case UpdateKind::weights: break;
  }
  return fmt::format("publishes parameters {} + {} of version {} on top of {} from its source {}",
                     claim.first_parameter, claim.parameters, claim.version, claim.base_version, claim.source_index);
}

/// Of what a trainer rank has to send, when all of it was claimed.
std::optional<Digest> digest_of(const SourceClaim* claimed) {
  if (claimed == nullptr || !claimed->knows_all()) return std::nullopt;
  return claimed->model();
}

}  // namespace

UpdateClaim UpdateGroup::State::claim(std::uint64_t base_version, std::uint64_t version) const {
  UpdateClaim claim;
  plan->digest.copy(claim.plan_digest.data(), claim.plan_digest.size());
  claim.base_version = base_version;
  claim.version = version;
  return claim;
}

void UpdateGroup::State::prepare(const UpdateClaim& claim, Deadline deadline) {
  const auto parameters = plan->model.parameters.size();
  if (claim.schema != UpdateClaim{}.schema) fail(ExitCode::bad_data, "the update's claim has an unknown schema");
  if (!std::equal(claim.plan_digest.begin(), claim.plan_digest.end(), plan->digest.begin(), plan->digest.end())) {
    fail(ExitCode::config, "the update was made for another plan");
  }
  if (claim.first_parameter >= parameters || claim.parameters == 0 ||
      claim.parameters > parameters - claim.first_parameter) {
    fail(ExitCode::config, "parameters {} + {} are not in the plan of {}", claim.first_parameter, claim.parameters,
         parameters);
  }
  const bool back = claim.kind == UpdateKind::rollback;
  if (open && (back || open->version != claim.version)) {
    fail(ExitCode::busy, "version {} is still being updated ({} parameters missing): {}version {} must wait",
         open->version, open->missing, back ? "a rollback to " : "", claim.version);
  }
  if (open || claim.kind == UpdateKind::unchanged) return;
  if (!back && claim.version <= claim.base_version)
    fail(ExitCode::config, "version {} does not come after its base {}", claim.version, claim.base_version);
  end->prepare(claim, deadline);
  if (back) return;
  open = {claim.version, parameters};
  arrived.assign(parameters, false);
}

void UpdateGroup::State::abort() noexcept {
  if (open) end->drop();
  open.reset();
}

UpdateResult UpdateGroup::State::run(const UpdateClaim& claim, const SourceClaim* claimed, Stopwatch& watch) {
  UpdateResult result;
  result.version = claim.version;
  result.begin_ns = watch.begin_ns();
  result.prepare_s = watch.lap();
  switch (claim.kind) {
    case UpdateKind::unchanged: result.committed = result.no_op = true; break;
    case UpdateKind::rollback: run_rollback(claim, watch, result); break;
    case UpdateKind::weights: run_weights(claim, claimed, watch, result); break;
  }
  if (result.committed) result.digest = last.digest;
  return result;
}

void UpdateGroup::State::run_weights(const UpdateClaim& claim, const SourceClaim* claimed, Stopwatch& watch,
                                     UpdateResult& result) {
  const auto parts = agree_on_delta(claim);
  auto& mover = parts ? delta : dense;
  auto& transport = ready(mover);
  mover.failed = true;  // unless all ranks come through
  agree(group, "stage", deadline(), [&](Deadline work) {
    if (parts) {
      end->stage_delta(claim, claimed, *parts, transport, work);
    } else {
      end->stage(claim, claimed, transport, work);
    }
  });
  mover.failed = false;
  for (std::size_t p = claim.first_parameter; p < claim.first_parameter + claim.parameters; ++p) {
    if (!arrived[p]) --open->missing;
    arrived[p] = true;
  }
  const bool completes = open->missing == 0;
  result.stage_s = watch.lap();
  prove(claim, completes, watch, result);
  if (completes) {
    const HeldVersion version{open->version, options.proof == Proof::none ? std::nullopt : std::optional(sent.back())};
    open.reset();
    end->commit(claim, version);
    previous = std::exchange(last, version);
    had_before = std::exchange(had, trainers.size() > 1 ? digest_of(claimed) : version.digest);
    result.committed = true;
  }
  result.commit_s = watch.lap();
  result.egress_bytes = transport.traffic().egress_bytes;
  result.staging_bytes = transport.traffic().staging_bytes;
  result.payload = parts ? Payload::delta : Payload::dense;
  if (parts) end->report(result);
}

std::optional<std::size_t> UpdateGroup::State::agree_on_delta(const UpdateClaim& claim) {
  if (claim.payload != Payload::delta) return std::nullopt;
  std::size_t parts = Participant::no_delta;
  agree(group, "prepare", deadline(), [&](Deadline work) {
    parts = group.max(deltas ? end->delta_parts(claim) : parts, work);
    if (parts == Participant::no_delta) end->prepare_dense(work);
  });
  return parts == Participant::no_delta ? std::nullopt : std::optional(parts);
}

void UpdateGroup::State::prove(const UpdateClaim& claim, bool completes, Stopwatch& watch, UpdateResult& result) {
  try {
    // The verdict over VERIFY is the VOTE.
    agree(group, "verify", deadline(), [&](Deadline work) {
      const auto digests = std::span(sent).first(options.tp * claim.parameters + 1);
      std::exception_ptr failure;  // after which this rank still takes part in what all do
      try {
        end->digest(claim, completes, digests, work);
      } catch (...) {
        failure = std::current_exception();
      }
      if (options.proof == Proof::digests) group.broadcast(std::as_writable_bytes(digests), 0, work);
      if (failure) std::rethrow_exception(failure);
      if (options.proof == Proof::digests) {
        end->compare(claim, digests);
        sent.back() = digests.back();
      }
      result.verify_s = watch.lap();
    });
  } catch (const Error& error) {
    // What arrived is not what was claimed: was it ever there?
    if (error.code() == ExitCode::mismatch && error.reach() == Error::Reach::everybody)
      agree(group, "verify", deadline(), [&](Deadline work) { end->prove_source(claim, work); });
    throw;
  }
  result.vote_s = watch.lap();
}

// A rollback is a transaction in which nothing moves: PREPARE asks whether the version is still held, VERIFY whether it
// is still what was committed, VOTE is the agreement over both, COMMIT the flip.
void UpdateGroup::State::run_rollback(const UpdateClaim& claim, Stopwatch& watch, UpdateResult& result) {
  agree(group, "verify", deadline(), [&](Deadline work) {
    end->prove_held(claim, work);
    result.verify_s = watch.lap();
  });
  result.vote_s = watch.lap();
  std::swap(last, previous);
  std::swap(had, had_before);
  if (last.id != claim.version) {  // what was served when the group was formed
    last = {claim.version, {}};
    had.reset();
  }
  end->commit(claim, last);
  result.commit_s = watch.lap();
  result.committed = true;
}

UpdateResult UpdateGroup::State::offer(const UpdateClaim& claim, const SourceClaim* claimed) {
  Stopwatch watch;
  const bool opened = open.has_value();
  try {
    offers->offer(claim, deadline(), [&](Deadline work) { prepare(claim, work); });
    return run(claim, claimed, watch);
  } catch (const Error& error) {
    // A refused newcomer leaves the update alone that it collided with, and so does an offer that engines had no time
    // for.
    const bool withdrawn = opened && error.reach() == Error::Reach::local;
    lost = lost || error.reach() == Error::Reach::lost;
    if (open && open->version == claim.version && !withdrawn) abort();
    throw;
  }
}

std::optional<UpdateResult> UpdateGroup::State::accept(Deadline wait, FunctionRef<void(const UpdateClaim&)> check,
                                                       FunctionRef<bool()> give_up, const SourceClaim* claimed) {
  Stopwatch watch;
  UpdateClaim offered;
  bool opened = false;
  const auto take = [&](const UpdateClaim& claim, Deadline work) {
    watch = Stopwatch();  // the wait for rank 0 is no part of an update
    offered = claim;
    opened = !open;
    prepare(claim, work);
    if (check) check(claim);
  };
  const auto undo = [&] {
    if (opened) abort();
    offered = {};
  };
  try {
    const auto claim = offers->accept(wait, options.timeout_s, take, undo, give_up);
    if (!claim) return std::nullopt;
    return run(*claim, claimed, watch);
  } catch (const Error& error) {
    lost = lost || error.reach() == Error::Reach::lost;
    if (open && open->version == offered.version) abort();
    throw;
  }
}

UpdateResult UpdateGroup::State::begin(UpdateClaim claim, const SourceClaim* claimed) {
  // The same version with the same content again is not an error and moves nothing.
  if (!open && claim.kind == UpdateKind::weights && claim.version == last.id && last.digest && had &&
      digest_of(claimed) == had) {
    claim.kind = UpdateKind::unchanged;
  }
  if (group.rank() == 0) return offer(claim, claimed);
  bool offered_once = false;
  const auto same = [&](const UpdateClaim& offered) {
    offered_once = true;
    claim.payload = offered.payload;  // it may be that only one of them has a delta
    if (std::ranges::equal(bytes_of(offered), bytes_of(claim))) return;
    throw Error(
        ExitCode::config,
        fmt::format("trainer rank 0 {}, but trainer rank {} {}", describe(offered), group.rank(), describe(claim)),
        "call the same on all trainer ranks, with the same version");
  };
  try {
    const auto result = accept(
        deadline(), same, [&] { return offered_once; }, claimed);
    if (!result) throw Error(ExitCode::unavailable, "trainer rank 0 has left the group");
    return *result;
  } catch (const Error& error) {
    if (error.code() != ExitCode::busy || error.reach() != Error::Reach::local) throw;
    const std::string_view how = offered_once ? "has withdrawn its offer of" : "did not offer in time";
    throw Error(ExitCode::busy, fmt::format("trainer rank 0 {} version {}", how, claim.version),
                "nothing has changed: call again on all trainer ranks");
  }
}

UpdateResult UpdateGroup::publish(const UpdateRequest& request) {
  auto& s = *state_;
  if (!s.peers.trainer()) throw Error(ExitCode::config, "publish() on an engine rank", "only trainer ranks publish");
  auto claim = s.claim(request.base_version, request.version);
  claim.source_index = request.source_index;
  claim.first_parameter = request.first_parameter;
  claim.parameters = request.parameters;
  const Stopwatch watch;
  if (s.deltas && s.end->make_delta(claim, request.changes, s.deadline())) claim.payload = Payload::delta;
  const auto diff_s = watch.elapsed_s();
  auto result = s.begin(claim, request.claimed);
  if (result.payload == Payload::delta) result.diff_s = diff_s;
  return result;
}

UpdateResult UpdateGroup::roll_back(std::uint64_t base_version, std::uint64_t version) {
  auto& s = *state_;
  if (!s.peers.trainer()) throw Error(ExitCode::config, "roll_back() on an engine rank", "only trainer ranks call it");
  auto claim = s.claim(base_version, version);
  claim.parameters = s.plan->model.parameters.size();
  claim.kind = UpdateKind::rollback;
  return s.begin(claim, nullptr);
}

std::optional<UpdateResult> UpdateGroup::receive(Deadline wait, FunctionRef<void(const UpdateClaim&)> check,
                                                 FunctionRef<bool()> give_up) {
  auto& s = *state_;
  if (s.peers.trainer()) throw Error(ExitCode::config, "receive() on the trainer", "only engine ranks receive");
  return s.accept(wait, check, give_up, nullptr);
}

void UpdateGroup::release_cache() noexcept {
  state_->dense.transport->release_cache();
}

}  // namespace weightcast
