#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/engine/layers.hpp"
#include "weightcast/store/parameter_store.hpp"
#include "weightcast/update/update_group.hpp"
#include "weightcast/verify/reference_check.hpp"

/// The receiving end, in the layers of a serving engine: Engine -> Scheduler -> TpWorker -> ModelRunner. Each rank of a
/// replica has the whole stack and calls it in step with the others; each layer notes its time.
namespace weightcast {

/// What the caller of an update expects of it; throws to refuse (see UpdateGroup::receive()).
using CheckClaim = FunctionRef<void(const UpdateClaim&)>;

/// The lowest layer: this rank's weights.
class ModelRunner {
 public:
  ModelRunner(const TransferPlan& plan, std::size_t tp_rank, CommitMode mode, Placement placement)
      : plan_(&plan), tp_rank_(tp_rank), store_(plan, mode, placement) {}

  /// Fills and serves the first version from a reader of full parameters. Local.
  void load(std::uint64_t version, const ReadReference& read, std::size_t threads,
            const std::function<void(std::uint64_t)>& progress);
  UpdateResult update(UpdateGroup& group, CheckClaim check);
  /// This rank's part of the first `rows` rows of a parameter, packed; empty when it is another rank's copy.
  std::vector<std::byte> rows(std::size_t parameter, std::uint64_t rows);

  ParameterStore& store() noexcept { return store_; }
  LayerTimes times{"model_runner"};
  /// What update() consists of.
  std::array<LayerTimes, 5> stages{LayerTimes("prepare"), LayerTimes("stage"), LayerTimes("verify"), LayerTimes("vote"),
                                   LayerTimes("commit")};

 private:
  const TransferPlan* plan_;
  std::size_t tp_rank_;
  ParameterStore store_;
};

/// One rank of a tensor-parallel replica: what needs its neighbours.
class TpWorker {
 public:
  TpWorker(const TransferPlan& plan, ModelRunner& runner) : plan_(&plan), runner_(&runner) {}
  UpdateResult update(UpdateGroup& group, CheckClaim check);
  /// The first rows of a parameter, from all shards, unfused, as float; on tp rank 0, elsewhere empty.
  std::vector<float> rows(UpdateGroup& group, std::size_t parameter, std::uint64_t rows);

  LayerTimes times{"tp_worker"};

 private:
  const TransferPlan* plan_;
  ModelRunner* runner_;
};

/// Admission: the right order of calls.
class Scheduler {
 public:
  explicit Scheduler(TpWorker& worker) : worker_(&worker) {}
  void join(std::unique_ptr<UpdateGroup> group);
  UpdateResult update(CheckClaim check);
  std::vector<float> rows(std::size_t parameter, std::uint64_t rows);
  /// Error(config) before join().
  UpdateGroup& group() const;

  LayerTimes times{"scheduler"};

 private:
  TpWorker* worker_;
  std::unique_ptr<UpdateGroup> group_;
};

/// What the verbs answer.
struct Answer {
  bool success = false;
  std::string message;
  ExitCode code = ExitCode::ok;  ///< why not

  /// For callers that prefer it: throws the error that all ranks of the group have met, unless it is a success.
  void throw_if_refused() const;
};

/// The public face of an engine rank. `plan` must outlive it.
class Engine {
 public:
  Engine(const TransferPlan& plan, std::size_t tp_rank, CommitMode mode, Placement placement)
      : plan_(&plan), runner_(plan, tp_rank, mode, placement), worker_(plan, runner_), scheduler_(worker_) {}

  /// Loads and serves the first version. Local.
  void load(std::uint64_t version, const ReadReference& read, std::size_t threads,
            const std::function<void(std::uint64_t)>& progress = {}) {
    runner_.load(version, read, threads, progress);
  }

  /// Forms the update group, warms it up and ends in a barrier bound to this rank's device. Collective (see
  /// UpdateGroup).
  void init_parameter_update_group(
      const Communicator& parent, const GroupOptions& options,
      const std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)>& wrap = {});

  /// Receives one parameter of the trainer's open update. `dtype` and `shape` are what the caller expects; a difference
  /// is refused on all ranks, before anything moves. The new version is served when its last parameter has arrived and
  /// all ranks agree. `empty_cache`: also give back memory that is only kept for speed. Collective over the update
  /// group. Not success: this call or the transaction failed, the served version is unchanged, the message says why.
  Answer update_parameter_from_distributed(std::string_view name, DType dtype, const std::vector<std::uint64_t>& shape,
                                           bool empty_cache = false);

  /// Receives all parameters as one transaction. Collective over the update group; throws the group's Error.
  UpdateResult update_weights();

  /// The first `truncate_size` rows of a parameter under its HF name, gathered from all shards of this replica and
  /// unfused, as float; on tp rank 0, elsewhere empty. Error(usage) for an unknown name. Collective over the replica.
  std::vector<float> get_weights_by_parameter_name(std::string_view name, std::uint64_t truncate_size);

  ParameterStore& store() noexcept { return runner_.store(); }
  UpdateGroup& group() const { return scheduler_.group(); }
  /// Engine, scheduler, tp_worker, model_runner.
  std::vector<const LayerTimes*> layers() const { return {&times_, &scheduler_.times, &worker_.times, &runner_.times}; }
  /// What the model runner's part of an update consists of: prepare, stage, verify, vote, commit.
  const std::array<LayerTimes, 5>& stages() const noexcept { return runner_.stages; }

 private:
  const TransferPlan* plan_;
  ModelRunner runner_;
  TpWorker worker_;
  Scheduler scheduler_;
  LayerTimes times_{"engine"};
};

}  // namespace weightcast
