#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "weightcast/store/parameter_store.hpp"
#include "weightcast/telemetry/layer_times.hpp"
#include "weightcast/update/stage_times.hpp"
#include "weightcast/update/update_group.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/reference_check.hpp"

namespace weightcast {

/// What the caller of an update expects of it; throws to refuse (see UpdateGroup::receive()).
using CheckClaim = FunctionRef<void(const UpdateClaim&)>;

/// How long an update is waited for, and by whom.
struct UpdateWait {
  std::optional<Deadline> until = {};  ///< nothing: for the group's timeout
  FunctionRef<bool()> give_up = {};    ///< looked at between two polls; may be empty; a view: name what it refers to
};

/// The lowest layer: this rank's weights. Updates and reads may run at the same time, but only one of each.
class ModelRunner {
 public:
  ModelRunner(const TransferPlan& plan, std::size_t tp_rank, CommitMode mode, Placement placement);

  /// Fills and serves the first version from a reader of full parameters (fill_from_reference()). Local.
  void load(std::uint64_t version, const Reference& reference, std::size_t threads,
            const std::function<void(std::uint64_t)>& progress);
  /// Takes part in the trainer's next update; nothing when it has left (see UpdateGroup::receive()). `empty_cache`:
  /// gives back memory that is only kept for speed.
  std::optional<UpdateResult> update(UpdateGroup& group, UpdateWait wait, bool empty_cache, CheckClaim check);
  /// This rank's part of the first `rows` rows of a parameter, packed; empty when it is another rank's copy. Local.
  std::vector<std::byte> rows(const ParameterStore::Pin& pin, std::size_t parameter, std::uint64_t rows);
  /// Digests of this rank's shards of parameters [first, first + count), as the slot holds them now; zero for another
  /// rank's copies. Local.
  std::vector<Digest> digests(const ParameterStore::Pin& pin, std::size_t first, std::size_t count, Deadline deadline);
  /// Holds this rank's slot against its proof: see UpdateGroup::scrub(). Local.
  bool scrub(UpdateGroup& group, const ParameterStore::Pin& pin, Deadline deadline);

  ParameterStore& store() noexcept { return store_; }
  std::size_t tp_rank() const noexcept { return tp_rank_; }
  LayerTimes times{"model_runner"}, read_times{"model_runner"};  // of updates, of reads
  LayerTimes scrub_times{"model_runner"};
  StageTimes stages;  // of updates

 private:
  const TransferPlan* plan_;
  std::size_t tp_rank_;
  ParameterStore store_;
  std::optional<GpuDigests> gpu_digests_;
};

/// Which of the first `rows` rows a shard has, as a slice of the parameter.
Slice first_rows(const Slice& shard, std::uint64_t rows);

}  // namespace weightcast
