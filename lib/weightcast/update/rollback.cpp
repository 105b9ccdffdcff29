// A rollback is a transaction in which nothing moves: PREPARE asks whether the version is still held, VERIFY whether it
// is still what was committed, VOTE is the agreement over both, COMMIT the flip.
#include <algorithm>
#include <utility>

#include "weightcast/update/group_state.hpp"

namespace weightcast {

void UpdateGroup::State::prove_served() {
  agree(group, "warm-up", deadline(), [&](Deadline work) {
    if (!slot_witness) return;
    const auto served = store->served();
    const auto slot = served ? store->slot_of(*served) : std::nullopt;
    if (!slot) return;
    const auto digests = slot_witness->digest(store->slots()[*slot], work);
    proven[*slot].assign(digests.begin(), digests.end());
  });
}

void UpdateGroup::State::prepare_rollback(const UpdateClaim& claim) const {
  if (open) {
    fail(ExitCode::busy,
         "version {} is still being updated ({} parameters missing): a rollback to version {} must wait", open->version,
         open->missing, claim.version);
  }
  if (store == nullptr) return;
  const auto served = store->served();
  if (served && *served != claim.base_version)
    fail(ExitCode::config, "the rollback is from version {}, but the engine serves {}", claim.base_version, *served);
  const auto slot = store->slot_of(claim.version);
  if (!slot || (slot_witness && proven[*slot].empty())) {
    throw Error(ExitCode::config, fmt::format("version {} is not held any more", claim.version),
                store->mode() == CommitMode::in_place
                    ? "an engine with --commit in-place has one slot; publish it again"
                    : "the other slot was overwritten since; publish it again");
  }
}

void UpdateGroup::State::verify_rollback(const UpdateClaim& claim, Deadline deadline) {
  if (!slot_witness) return;
  const auto slot = *store->slot_of(claim.version);
  const auto digests = slot_witness->digest(store->slots()[slot], deadline);
  const auto [differs, expected] = std::mismatch(digests.begin(), digests.end(), proven[slot].begin());
  if (differs == digests.end()) return;
  const auto parameter = static_cast<std::size_t>(differs - digests.begin());
  throw Error(ExitCode::mismatch,
              fmt::format("{} of version {} is not what was committed: digest {} instead of {}",
                          plan->model.parameters[parameter].info.name, claim.version, differs->hex(), expected->hex()),
              "this host's memory is faulty or was overwritten; publish the version again");
}

void UpdateGroup::State::commit_rollback(const UpdateClaim& claim) {
  if (store != nullptr) store->roll_back(claim.version);
  std::swap(last, previous);
  if (last.id != claim.version) last = {claim.version, {}};  // what was served when the group was formed
}

UpdateResult UpdateGroup::roll_back(std::uint64_t base_version, std::uint64_t version) {
  auto& s = *state_;
  if (!s.trainer())
    throw Error(ExitCode::config, "roll_back() on an engine rank", "only the trainer, rank 0, calls it");
  UpdateClaim claim;
  std::copy_n(s.plan->digest.begin(), std::min(claim.plan_digest.size(), s.plan->digest.size()),
              claim.plan_digest.begin());
  claim.base_version = base_version;
  claim.version = version;
  claim.parameters = s.plan->model.parameters.size();
  claim.flags = UpdateClaim::rollback;
  return s.offer(claim, {});
}

}  // namespace weightcast
