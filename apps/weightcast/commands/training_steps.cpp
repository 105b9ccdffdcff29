#include "commands/training_steps.hpp"

namespace weightcast {
namespace {

/// A piece, where it lies in a source region, as the loop's own tensor.
TrainingTensor placed(const Model& model, const Piece& piece, const Region& region) {
  auto tensor = tensor_of(model.parameters[piece.parameter_index].info, piece.slice);
  tensor.data = region.data + piece.offset;
  tensor.placement = {region.kind, region.gpu};
  return tensor;
}

}  // namespace

TrainingSteps::TrainingSteps(const TransferPlan& plan, std::size_t trainer_rank, Trainer& trainer)
    : trainer_(&trainer) {
  for (std::size_t version = 0; version < versions_.size(); ++version) {
    for (const auto& piece : plan.sources.ranks[trainer_rank].pieces)
      versions_[version].push_back(placed(plan.model, piece, trainer.source(version)));
  }
  source_index_ = trainer.reserve();
}

}  // namespace weightcast
