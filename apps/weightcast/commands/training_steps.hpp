#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "weightcast/trainer/trainer.hpp"

namespace weightcast {

/// A training loop for `bench`: before each update it fills one source region, as Trainer::fill() has it of a loop,
/// with one of two versions that lie in memory of their own.
class TrainingSteps {
 public:
  /// Takes the source regions 0 and 1 of `trainer`, which it must outlive, for what the loop has, and adds one that is
  /// sent. Local; before the update group is formed.
  TrainingSteps(const TransferPlan& plan, std::size_t trainer_rank, Trainer& trainer);

  /// Which source region is sent.
  std::size_t source_index() const noexcept { return source_index_; }
  /// Fills it with version 0 or 1. Local.
  void step(std::size_t version_index, Deadline deadline) {
    trainer_->fill(source_index_, versions_.at(version_index), deadline);
  }

 private:
  Trainer* trainer_;
  std::array<std::vector<TrainingTensor>, 2> versions_;
  std::size_t source_index_ = 0;
};

}  // namespace weightcast
