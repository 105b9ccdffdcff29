#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/delta/source_changes.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/store/parameter_store.hpp"
#include "weightcast/transport/transport.hpp"
#include "weightcast/update/manifest.hpp"
#include "weightcast/verify/source_claim.hpp"

/// The update group and its transaction: the only room that knows the whole road of the bytes.
///
/// OFFER    the trainer says what it has; engines answer when they are between requests. Who does not in time ends the
///          offer and nothing else.
/// PREPARE  everybody holds the claim of the update against what it knows; nothing has moved. Answer and agreement are
///          one exchange with the offer.
/// STAGE    bytes move into the spare slots; readers stay on the served version. Digests are taken on the way.
/// VERIFY   every engine rank compares the digests of what its slot holds with those of what the trainer sent.
/// VOTE     one agreement of outcomes over all ranks: all or none.
/// COMMIT   engines serve the new version from now on. Or ABORT: what was staged is dropped, all ranks throw one error.
namespace weightcast {

/// What an update proves before it commits.
enum class Proof : std::uint8_t {
  none,     ///< nothing: movement alone
  digests,  ///< every shard by digest
};

struct GroupOptions {
  std::uint64_t tp = 1, dp = 1;
  Placement placement = {};        ///< of this rank's weights
  std::string transport = "auto";  ///< a name of transport_names(), or auto: the first that all ranks can use
  Method method = Method::sharded;
  Proof proof = Proof::digests;
  double timeout_s = 60;  ///< of each stage
  /// Deltas are sent where they take no more than this share of the bytes, 0 to 1; then memory for so much is taken
  /// when the group is formed. 0: every version is sent whole. The same on all ranks.
  double delta_limit = 0;
  /// Engines can scrub(), which takes a little memory beside the slots. The same on all ranks.
  bool scrub = false;
  bool warm_up = true;  ///< exercise the transport's paths when the group is formed, and not in the first update
  TransportFactory make_transport = weightcast::make_transport;  ///< tests put decorators around what it makes
};

/// What the trainer asks for.
struct UpdateRequest {
  std::uint64_t base_version = 0, version = 0;
  std::size_t source_index = 0;  ///< which of its source regions
  /// What the source region holds, or nullptr. Parameters that this does not know are digested while they are sent:
  /// then what is sent is what counts.
  const SourceClaim* claimed = nullptr;
  /// Parameters to move in this call. An update is complete, and commits, when each has been moved once.
  std::size_t first_parameter = 0, parameters = 0;
  /// What changed in the source region since `base_version`, or nullptr: then the version is sent whole.
  const SourceChanges* changes = nullptr;
};

/// How one call went, in seconds of this rank.
struct UpdateResult {
  std::uint64_t version = 0;
  bool committed = false;        ///< false: parameters are still missing
  bool no_op = false;            ///< the engines held this version already
  std::optional<Digest> digest;  ///< of the whole model once committed; nothing without proof
  std::int64_t begin_ns = 0;     ///< of PREPARE on this rank, on the clock of Stopwatch; the stages follow each other
  double prepare_s = 0, stage_s = 0, verify_s = 0, vote_s = 0, commit_s = 0;
  double total_s() const noexcept { return prepare_s + stage_s + verify_s + vote_s + commit_s; }
  std::uint64_t egress_bytes = 0, staging_bytes = 0;
  Payload payload = Payload::dense;
  /// What leaves this trainer rank, of a delta with its tables; and units of 16 bits in it. 0 on engines.
  std::uint64_t shipped_bytes = 0, changed_elements = 0;
  double diff_s = 0;   ///< trainer ranks: making the delta, before it was offered; no part of total_s()
  double apply_s = 0;  ///< engines: writing it to the slot, a part of verify_s
};

/// Trainer and all engine ranks, bound together over one plan. All verbs are collective over the group and blocking,
/// each wait has a deadline, and on failure every rank throws the same Error naming the guilty rank. Destroying it is
/// collective, too: the trainer says farewell, an engine waits a little for that and refuses what is offered until
/// then.
class UpdateGroup {
 public:
  /// Forms the group: checks the size of the world, compares the manifests of all ranks (the first difference is
  /// named), chooses and attaches the transport, warms up its paths. Collective over `parent`. Trainer ranks, of which
  /// the plan's source layout says how many there are, the first of `parent`: `sources` are its source regions, `store`
  /// is nullptr. Engine: `store` is its store, `sources` is empty. All must outlive the group.
  UpdateGroup(const Communicator& parent, const TransferPlan& plan, const GroupOptions& options,
              std::vector<const Buffer*> sources, ParameterStore* store);
  ~UpdateGroup();
  UpdateGroup(UpdateGroup&&) = delete;

  /// Trainer ranks, all of them with the same versions and parameters (Error(config) naming who is not): publishes
  /// parameters to all engines. Error(busy) on this rank alone, naming the engines that did not take
  /// the offer in time: nothing has changed, the group is intact, and the engines know of nothing. The same error, on
  /// the other trainer ranks, then or when rank 0 does not publish in time.
  UpdateResult publish(const UpdateRequest& request);
  /// Trainer ranks: makes all engines serve a version again that their other slot still holds, once its digests have
  /// proven that it is what was committed (or served when the group was formed). Error(config) naming the ranks that no
  /// longer hold it; Error(mismatch) if it changed. On success it is the base of the next update.
  UpdateResult roll_back(std::uint64_t base_version, std::uint64_t version);
  /// Engines: waits until `wait` for the trainer's next publish() or roll_back() and takes part in it; nothing when the
  /// trainer has left the group and there will be none. `check` may refuse its claim by throwing, before anything
  /// moves: then all ranks throw that error. Error(busy), and nothing is lost, when nothing was offered that all ranks
  /// went on with, or `give_up` (looked at between two polls) says that this rank has something else to do.
  std::optional<UpdateResult> receive(Deadline wait, FunctionRef<void(const UpdateClaim&)> check = {},
                                      FunctionRef<bool()> give_up = {});

  /// Engines: digests all that the slot of a pinned version holds, whoever moved it there, and compares with what was
  /// proven when it was committed (or served, when the group was formed). Whether there was such a proof to compare
  /// with: not without Proof::digests. Error(mismatch) naming the first parameter that has changed since; then this
  /// rank takes no delta on top of what it serves until a dense update is committed. Padding is nobody's parameter, and
  /// not looked at. Error(config) without GroupOptions::scrub.
  /// Local, without the trainer; on any thread, beside readers, updates and their failures, which it does not disturb
  /// (but an update that needs the slot waits for the pin). Takes turns with other scrubs of this rank. Allocates
  /// nothing.
  bool scrub(const ParameterStore::Pin& pin, Deadline deadline);

  /// Gives back memory that is only kept for speed; the next update allocates it again. Local, between updates.
  void release_cache() noexcept;

  const Communicator& group() const noexcept;
  /// Engine ranks of this rank's replica, by tp rank; on the trainer an empty communicator.
  const Communicator& replica() const noexcept;
  const TransferPlan& plan() const noexcept;
  const GroupOptions& options() const noexcept;
  std::string_view transport() const noexcept;
  /// Why `auto` passed over transports ("direct: the ranks are on several hosts"), or empty.
  const std::string& transport_notes() const noexcept;
  /// Of memory for deltas on this rank, sent or received.
  std::uint64_t delta_bytes() const noexcept;
  double init_s() const noexcept;
  double warmup_s() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weightcast
