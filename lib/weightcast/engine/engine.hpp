#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/engine/scheduler.hpp"

/// The receiving end, in the layers of a serving engine: Engine -> Scheduler -> TpWorker -> ModelRunner. The first rank
/// of a replica takes requests, from any number of threads; the others serve() it. Each layer notes its time.
namespace weightcast {

/// What the verbs that change weights answer.
struct Answer {
  bool success = false;
  std::string message;
  ExitCode code = ExitCode::ok;  ///< why not
  UpdateResult result = {};      ///< of a success
  std::optional<Error> error = {};

  /// For callers that prefer it: throws the error, unless it is a success.
  const UpdateResult& throw_if_refused() const;
};

/// One rank of an engine. Life: load(), init_parameter_update_group(), then requests on tp rank 0 while the others
/// serve(), until shutdown(); after that a new group may be formed. Or requests on every rank: see Driver. `plan` must
/// outlive it.
///
/// Requests are thread-safe. Reads run while updates run: they are answered from the version that was served when they
/// began, on all ranks, and never wait for a commit. With --commit in-place they are refused with Error(busy) while the
/// one slot is being overwritten. A second update is refused at once, with both versions in the message.
class Engine {
 public:
  Engine(const TransferPlan& plan, std::size_t tp_rank, CommitMode mode, Placement placement);
  /// On tp rank 0 ends what shutdown() would have ended, so that the other ranks can leave when this one fails.
  ~Engine();
  Engine(Engine&&) = delete;

  /// Loads and serves the first version. Local; before init_parameter_update_group().
  void load(std::uint64_t version, const Reference& reference, std::size_t threads,
            const std::function<void(std::uint64_t)>& progress = {});

  /// Forms the update group, warms it up and ends in a barrier bound to this rank's device. Collective (see
  /// UpdateGroup).
  void init_parameter_update_group(const Communicator& parent, const GroupOptions& options,
                                   Driver driver = Driver::first_rank);

  /// Tp ranks other than 0: works for tp rank 0 until its shutdown(). Throws when a rank is lost (Error::Reach::lost);
  /// refused updates are answered by tp rank 0.
  void serve();

  // Requests, on tp rank 0 or on every rank (see Driver).

  /// Receives one parameter of the trainer's open update. `dtype` and `shape` are what the caller expects; a difference
  /// is refused on all ranks, before anything moves. The new version is served when its last parameter has arrived and
  /// all ranks agree. `empty_cache`: also give back memory that is only kept for speed. Collective over the update
  /// group. Not success: this call or the transaction failed, the served version is unchanged, the message says on
  /// which ranks and why. Throws only when a rank is lost.
  Answer update_parameter_from_distributed(std::string_view name, DType dtype, const std::vector<std::uint64_t>& shape,
                                           bool empty_cache = false);

  /// Receives all parameters as one transaction: `version`, or whatever the trainer publishes (a rollback, too). As
  /// above. Not success with ExitCode::busy, and nothing is lost: the trainer has not begun within the group's
  /// timeout.
  Answer update_weights(std::uint64_t version = any_version);

  /// update_weights() for loops: waits until `wait`, and gives nothing when the trainer has left. `check` may refuse
  /// what is offered. Throws what update_weights() would answer.
  std::optional<UpdateResult> receive(Deadline wait, CheckClaim check = {});

  /// Serves a version again that the other slot still holds, when the trainer says so, too (Trainer::rollback()). Its
  /// digest is verified first. As above.
  Answer rollback(std::uint64_t version);

  /// The first `truncate_size` rows of a parameter under its HF name, gathered from all shards of this replica and
  /// unfused, as float, and the version that they are of. Error(usage) for an unknown name; Error(busy) when nothing is
  /// served.
  WeightRows get_weights_by_parameter_name(std::string_view name, std::uint64_t truncate_size);

  /// Digest of those parameters, or of the whole model when there are none, computed from what the slots of all ranks
  /// hold now: a request that touches every byte. For the whole model it is the digest of the committed version. Errors
  /// as above.
  Probe probe(const std::vector<std::string>& names = {});

  /// Holds every byte that all ranks of this replica serve against the digests that it was committed with: what a probe
  /// is for a caller who knows the digest, it also names the parameter, and no read waits for it, nor it for reads.
  /// Without the trainer. Error(mismatch) naming parameter, version and rank: see UpdateGroup::scrub(), which also says
  /// what Error(config) is; Error(busy) when nothing is served.
  Scrub scrub();

  /// Refuses new requests, waits for those under way and ends serve() on the other ranks.
  void shutdown();

  ParameterStore& store() noexcept { return runner_.store(); }
  UpdateGroup& group() const { return scheduler_.group(); }
  /// Engine, scheduler, tp_worker, model_runner: what brought weights.
  std::array<const LayerTimes*, 4> layers() const {
    return {&times_, &scheduler_.times, &worker_.times, &runner_.times};
  }
  /// The same of what looked at them.
  std::array<const LayerTimes*, 4> read_layers() const {
    return {&read_times_, &scheduler_.read_times, &worker_.read_times, &runner_.read_times};
  }
  /// The same of scrubs.
  std::array<const LayerTimes*, 4> scrub_layers() const {
    return {&scrub_times_, &scheduler_.scrub_times, &worker_.scrub_times, &runner_.scrub_times};
  }
  /// What the model runner's part of an update consists of.
  const StageTimes& stages() const noexcept { return runner_.stages; }

 private:
  Answer answer(std::string_view verb, std::uint64_t version, bool empty_cache, CheckClaim check);

  const TransferPlan* plan_;
  ModelRunner runner_;
  TpWorker worker_;
  Scheduler scheduler_;
  LayerTimes times_{"engine"}, read_times_{"engine"}, scrub_times_{"engine"};
};

}  // namespace weightcast
