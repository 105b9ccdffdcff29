#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "weightcast/core/function_ref.hpp"
#include "weightcast/engine/engine.hpp"
#include "weightcast/job/job.hpp"
#include "weightcast/telemetry/report.hpp"
#include "weightcast/trainer/trainer.hpp"
#include "weightcast/trainer/weight_source.hpp"
#include "weightcast/verify/reference_check.hpp"

namespace weightcast {

/// How one version travels: as one transaction, or, as the seed does it, in one request for each parameter.
enum class Granularity { model, parameter };

/// One update as its callers saw it.
struct UpdateResults {
  std::vector<UpdateResult> trainers;                 ///< by trainer rank
  std::uint64_t egress_bytes = 0, staging_bytes = 0;  ///< of all of them, and of the one that had most
  ReportPayload sent;
};

/// This rank's side of a job: a trainer rank with the weights that it publishes, or a rank of an engine. What the two
/// do together has one name here.
class Side {
 public:
  /// Holds nothing yet. `job` and `plan` must outlive it; `commit` is how engines switch.
  Side(const Job& job, const TransferPlan& plan, Placement placement, CommitMode commit = CommitMode::swap);

  /// Error(config) on all ranks when there is not the memory for load() of so many published versions, see
  /// expect_room(). Collective.
  void expect_room(std::size_t published) const;

  /// Makes the trainer or the engine, without weights. Local.
  void create();
  /// The same, with weights: each trainer rank reads its pieces of all of `published`, which become its source regions
  /// 0, 1, ...; engines read `served`, as version 1. Begins with expect_room(). `progress(bytes)` is called on trainer
  /// ranks, by any thread. Collective; patient with slow disks, but it ends on all ranks when one has noted a signal.
  void load(const std::vector<const WeightSource*>& published, const WeightSource& served,
            FunctionRef<void(std::uint64_t bytes)> progress = {});

  /// Forms the update group; the engines serve `served_version` already. Its tp, dp and placement are those of this.
  /// Collective.
  void form_group(GroupOptions options, std::uint64_t served_version);

  /// In while_serving(): the trainer ranks publish their source regions `source_index`, the first rank of each engine
  /// receives them. By parameter it goes in the order of the model; then times and bytes that left are the sums of all
  /// calls, and the rest is what the last one said. Throws the error of an update that was refused.
  UpdateResult update(std::size_t source_index, std::uint64_t version, Granularity granularity);

  /// What update() gave to all `callers` of while_serving(); to this one it was `mine`. Collective over them.
  UpdateResults results(const Communicator& callers, const UpdateResult& mine) const;

  /// In while_serving(): every engine scrubs while its readers go on, see Engine::scrub(); the others are told how that
  /// ended. How long it took the slowest engine. Collective over the `callers`; all of them throw Error(mismatch), or
  /// none.
  double scrub(const Communicator& callers) const;

  /// Compares every byte that this rank serves with a reference; nothing differs on trainer ranks. Collective; patient
  /// as load() is.
  ReferenceCheck check(const Reference& reference) const;

  /// nullptr on the ranks that are the other.
  Trainer* trainer() const noexcept { return trainer_.get(); }
  Engine* engine() const noexcept { return engine_.get(); }
  /// What update() took on a trainer rank: its calls, and their stages. nullptr on engine ranks, which note more.
  struct Publishing {
    LayerTimes times{"trainer"};
    StageTimes stages;
  };
  const Publishing* publishing() const noexcept { return publishing_.get(); }
  /// Of memory that deltas take on this rank.
  std::uint64_t delta_bytes() const { return trainer_ ? trainer_->delta_bytes() : engine_->group().delta_bytes(); }
  UpdateGroup& group() const { return trainer_ ? trainer_->group() : engine_->group(); }
  /// Of an engine rank.
  std::size_t tp_rank() const noexcept { return plan_->roster().tp_rank(job_->world().rank()); }
  const TransferPlan& plan() const noexcept { return *plan_; }

 private:
  /// A call of the trainer, noted.
  UpdateResult publish(FunctionRef<UpdateResult()> call);

  const Job* job_;
  const TransferPlan* plan_;
  Placement placement_;
  CommitMode commit_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<Publishing> publishing_;  // with the trainer
  std::unique_ptr<Engine> engine_;
};

/// Runs `body` on the trainer ranks (`engine` is nullptr) and on the first rank of each replica, with a communicator of
/// just these, while the other engine ranks serve. Ends with Engine::shutdown(): all ranks are back, and all throw what
/// any of them threw. Collective over the job.
void while_serving(const Job& job, Engine* engine, FunctionRef<void(const Communicator& callers)> body);

/// A source, which must outlive it, as a reference.
Reference reference_of(const WeightSource& source);

}  // namespace weightcast
