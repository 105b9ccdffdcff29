#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/delta/source_changes.hpp"
#include "weightcast/trainer/training_tensors.hpp"
#include "weightcast/trainer/weight_source.hpp"
#include "weightcast/update/admission.hpp"
#include "weightcast/update/update_group.hpp"

namespace weightcast {

/// The sending end: holds weights in source regions that engines may pull from, and publishes them. There is one on
/// every trainer rank: each has what the plan's source layout says, and all call the same collective functions.
class Trainer {
 public:
  /// Keeps its weights at `placement`. `plan` must outlive the trainer.
  explicit Trainer(const TransferPlan& plan, Placement placement = {}, std::size_t trainer_rank = 0)
      : plan_(&plan), placement_(placement), trainer_rank_(trainer_rank), fill_(plan, trainer_rank) {}

  /// Adds a source region and fills it with this rank's pieces on up to `threads` threads, digesting each block as it
  /// arrives, so that later damage to file or memory is noticed; made-up weights on a GPU are made and digested there.
  /// `progress(bytes)` is told what is there, by any thread, and nothing, again and again, while a GPU works; it may
  /// throw. Returns its index. Local; before init_parameter_update_group().
  std::size_t load(const WeightSource& source, std::size_t threads,
                   const std::function<void(std::uint64_t bytes)>& progress = {});

  /// Adds an empty source region, for fill(). Returns its index. Local; before
  /// init_parameter_update_group().
  std::size_t reserve();
  /// Puts the tensors of a training loop into a source region, rounding masters to the model's dtype (see SourceFill
  /// for what it takes and refuses), and digests them as they get there. Local. Error(busy) during an update.
  void fill(std::size_t source_index, std::span<const TrainingTensor> tensors, Deadline deadline = Deadline::after(60));

  /// One tensor of them, for loops that never have all at hand (see SourceFill::put()). Which piece it is, if any.
  std::optional<std::size_t> put(std::size_t source_index, const TrainingTensor& tensor,
                                 Deadline deadline = Deadline::after(60));
  /// Error(bad_data) unless a source region holds what this tensor is: for one that is tied and was put under its
  /// `other` name.
  void expect_held(std::size_t source_index, const TrainingTensor& tensor, std::string_view other,
                   Deadline deadline = Deadline::after(60));

  /// Joins the update group as trainer rank `parent.rank()`, which must be this one's; the engines serve
  /// `served_version` already. Collective (see UpdateGroup).
  void init_parameter_update_group(const Communicator& parent, const GroupOptions& options,
                                   std::uint64_t served_version);
  /// Sends all parameters of a source region as `version`, in one transaction; with GroupOptions::delta_limit what
  /// changed since the served version, where fill() has seen it, or another source region is that version still.
  /// Collective; the engines call their update_weights().
  UpdateResult update_weights(std::size_t source_index, std::uint64_t version);
  /// Sends one parameter; `version` is committed when the last one has been sent. Error(usage) for an unknown name.
  /// `empty_cache`: then also give back memory that is only kept for speed.
  UpdateResult update_parameter(std::size_t source_index, std::uint64_t version, std::string_view name,
                                bool empty_cache = false);

  /// Makes the engines serve a version again that they still hold in their other slot, verified by digest. Collective.
  /// Error(config) when they do not.
  UpdateResult rollback(std::uint64_t version);

  /// A source region, laid out as the plan's source layout says; not to be written during an update.
  Region source(std::size_t source_index) const { return sources_.at(source_index)->buffer.region(); }
  /// The memory of all source regions, for mapping it elsewhere.
  std::vector<const Buffer*> buffers() const;
  /// What a source region was given, as it was read or filled.
  const SourceClaim& claimed(std::size_t source_index) const { return sources_.at(source_index)->claimed; }
  /// Of memory that deltas take on this rank: what is sent of them, and marks for each source region.
  std::uint64_t delta_bytes() const;
  /// Error(config) before init_parameter_update_group().
  UpdateGroup& group() const;

 private:
  struct Source {
    Buffer buffer;
    SourceClaim claimed;
    SourceChanges changes = {};  // with deltas
    bool clean = false;          // it is what it was when `changes` began
  };
  std::unique_ptr<Source> make_source(const std::string& purpose) const;
  /// Through the host, in blocks.
  void read_source(const WeightSource& source, const Region& region, SourceClaim& claim, std::size_t threads,
                   const std::function<void(std::uint64_t)>& progress) const;
  /// Error(config) when there is no such source region.
  Source& to_fill(std::size_t source_index);
  UpdateResult update(std::size_t source_index, std::uint64_t version, std::size_t first, std::size_t count);
  /// What changed in a source region since the served version, or nullptr when nobody knows: what fill() marked, or how
  /// it differs from another region that is that version.
  const SourceChanges* changes_of(Source& source);

  const TransferPlan* plan_;
  Placement placement_;
  std::size_t trainer_rank_;
  SourceFill fill_;
  std::vector<std::unique_ptr<Source>> sources_;
  std::unique_ptr<UpdateGroup> group_;
  std::uint64_t served_version_ = 0;
  Admission admission_;
};

}  // namespace weightcast
