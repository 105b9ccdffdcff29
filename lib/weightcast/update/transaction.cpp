#include <algorithm>
#include <cstring>
#include <utility>

#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/update/group_state.hpp"

namespace weightcast {

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
  if (claim.flags == UpdateClaim::same) return;
  if (claim.flags == UpdateClaim::rollback) return prepare_rollback(claim);
  if (open && open->version != claim.version) {
    fail(ExitCode::busy, "version {} is still being updated ({} parameters missing): version {} must wait",
         open->version, open->missing, claim.version);
  }
  if (open) return;
  if (claim.version <= claim.base_version)
    fail(ExitCode::config, "version {} does not come after its base {}", claim.version, claim.base_version);
  OpenUpdate begun{claim.base_version, claim.version, 0, parameters};
  if (store != nullptr) {
    const auto served = store->served();
    // A dirty engine has no base: only a full update helps it, and every update is full.
    if (served && *served != claim.base_version) {
      throw Error(
          ExitCode::config,
          fmt::format("the update is based on version {}, but the engine serves {}", claim.base_version, *served),
          "publish on top of the served version");
    }
    begun.sink = store->reserve(deadline);
  }
  open = begun;
  arrived.assign(parameters, false);
}

void UpdateGroup::State::stage(const UpdateClaim& claim, Deadline deadline) {
  Batch batch{claim.source, open->sink, claim.first_parameter, claim.parameters, nullptr};
  if (source_witness) {
    source_witness->begin(endpoints.sources.at(claim.source)->region(), batch.first_parameter, batch.parameters);
    batch.witness = &*source_witness;
  }
  if (slot_witness) {
    slot_witness->begin(store->slots()[open->sink], batch.first_parameter, batch.parameters);
    batch.witness = &*slot_witness;
  }
  // Only now: until PREPARE was agreed on, requests of other ranks could still need what the slot holds.
  if (store != nullptr) store->overwrite();
  transport->run(batch, deadline);
  for (std::size_t p = claim.first_parameter; p < claim.first_parameter + claim.parameters; ++p) {
    if (!arrived[p]) --open->missing;
    arrived[p] = true;
  }
}

void UpdateGroup::State::verify(const UpdateClaim& claim, std::span<const Digest> claimed, Deadline deadline) {
  if (options.proof == Proof::none) return;
  const auto first = claim.first_parameter, count = claim.parameters, tp = options.tp;
  const auto message = std::span(sent).first(tp * count + 1);  // by tp rank, then parameter; last the model's digest
  if (source_witness) {
    source_witness->finish(deadline);
    const auto& digests = source_witness->digests();
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t t = 0; t < tp; ++t) message[t * count + i] = digests.shard(t, first + i);
      parameter_digests[first + i] = digests.parameter(first + i);
    }
    message.back() = complete() ? model_digest->of(parameter_digests) : Digest{};
  }
  if (slot_witness) slot_witness->finish(deadline);
  group.broadcast(std::as_writable_bytes(message), 0, deadline);
  sent.back() = message.back();
  for (std::size_t i = 0; i < count; ++i) {
    const auto& parameter = plan->model.parameters[first + i].info.name;
    if (source_witness && !claimed.empty() && claimed[first + i] != parameter_digests[first + i]) {
      throw Error(ExitCode::mismatch,
                  fmt::format("{} changed between loading and sending: its digest was {} and is {}", parameter,
                              claimed[first + i].hex(), parameter_digests[first + i].hex()),
                  "the trainer's memory or its file was overwritten; publish again");
    }
    if (slot_witness && slot_witness->shard(first + i) != message[peers.tp_rank() * count + i]) {
      throw Error(ExitCode::mismatch,
                  fmt::format("{} arrived with other bytes than were sent: digest {} instead of {}", parameter,
                              slot_witness->shard(first + i).hex(), message[peers.tp_rank() * count + i].hex()),
                  "the link, a buffer or this host's memory is faulty; check its error counters, then publish again");
    }
  }
}

void UpdateGroup::State::commit() {
  previous = last;
  last = {open->version, options.proof == Proof::none ? std::nullopt : std::optional(sent.back())};
  if (slot_witness) proven[open->sink].assign(slot_witness->shards().begin(), slot_witness->shards().end());
  open.reset();
  if (store != nullptr) store->publish(last);
}

void UpdateGroup::State::abort() noexcept {
  if (open && store != nullptr) store->drop();
  open.reset();
}

UpdateResult UpdateGroup::State::run(const UpdateClaim& claim, std::span<const Digest> claimed, Stopwatch& watch) {
  UpdateResult result;
  result.version = claim.version;
  result.prepare_s = watch.lap();
  if (claim.flags == UpdateClaim::same) {
    result.committed = result.no_op = true;
    result.digest = last.digest;
    return result;
  }
  if (claim.flags == UpdateClaim::rollback) {
    agree(group, "verify", deadline(), [&](Deadline work) {
      verify_rollback(claim, work);
      result.verify_s = watch.lap();
    });
    result.vote_s = watch.lap();
    commit_rollback(claim);
    result.commit_s = watch.lap();
    result.committed = true;
    result.digest = last.digest;
    return result;
  }
  if (transport_failed) replace_transport();
  transport_failed = true;  // unless all ranks come through
  agree(group, "stage", deadline(), [&](Deadline work) { stage(claim, work); });
  transport_failed = false;
  result.stage_s = watch.lap();
  // The verdict over VERIFY is the VOTE.
  agree(group, "verify", deadline(), [&](Deadline work) {
    verify(claim, claimed, work);
    result.verify_s = watch.lap();
  });
  result.vote_s = watch.lap();
  if (complete()) {
    commit();
    result.digest = last.digest;
    result.committed = true;
  }
  result.commit_s = watch.lap();
  result.egress_bytes = transport->traffic().egress_bytes;
  result.staging_bytes = transport->traffic().staging_bytes;
  return result;
}

UpdateResult UpdateGroup::State::offer(const UpdateClaim& claim, std::span<const Digest> claimed) {
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

UpdateResult UpdateGroup::publish(const UpdateRequest& request) {
  auto& s = *state_;
  if (!s.trainer()) throw Error(ExitCode::config, "publish() on an engine rank", "only the trainer, rank 0, publishes");
  UpdateClaim claim;
  std::copy_n(s.plan->digest.begin(), std::min(claim.plan_digest.size(), s.plan->digest.size()),
              claim.plan_digest.begin());
  claim.base_version = request.base_version;
  claim.version = request.version;
  claim.source = request.source;
  claim.first_parameter = request.first_parameter;
  claim.parameters = request.parameters;
  // The same version with the same content again is not an error and moves nothing.
  if (!s.open && request.version == s.last.id && s.last.digest && !request.claimed.empty() &&
      s.model_digest->of(request.claimed) == s.last.digest) {
    claim.flags = UpdateClaim::same;
  }
  return s.offer(claim, request.claimed);
}

std::optional<UpdateResult> UpdateGroup::receive(Deadline wait, FunctionRef<void(const UpdateClaim&)> check,
                                                 FunctionRef<bool()> give_up) {
  auto& s = *state_;
  if (s.trainer()) throw Error(ExitCode::config, "receive() on the trainer", "only engine ranks receive");
  Stopwatch watch;
  UpdateClaim offered;
  bool opened = false;
  const auto prepare = [&](const UpdateClaim& claim, Deadline work) {
    watch = Stopwatch();  // the wait for the trainer is no part of an update
    offered = claim;
    opened = !s.open;
    s.prepare(claim, work);
    if (check) check(claim);
  };
  const auto undo = [&] {
    if (opened) s.abort();
    offered = {};
  };
  try {
    const auto claim = s.offers->accept(wait, s.options.timeout_s, prepare, undo, give_up);
    if (!claim) return std::nullopt;
    return s.run(*claim, {}, watch);
  } catch (const Error& error) {
    s.lost = s.lost || error.reach() == Error::Reach::lost;
    if (s.open && s.open->version == offered.version) s.abort();
    throw;
  }
}

void UpdateGroup::release_cache() noexcept {
  state_->transport->release_cache();
}

}  // namespace weightcast
