#include "commands/training_steps.hpp"

namespace weightcast {
namespace {

/// A piece, where it lies in a source region, as the loop's own tensor.
TrainingTensor tensor_of(const Model& model, const Piece& piece, const Region& region) {
  const auto& parameter = model.parameters[piece.parameter_index].info;
  const auto& slice = piece.slice;
  TrainingTensor tensor{.info = {parameter.name, parameter.dtype, {slice.rows}},
                        .data = region.data + piece.offset,
                        .placement = {region.kind, region.gpu},
                        .offsets = {slice.row},
                        .full_shape = parameter.shape};
  if (parameter.shape.size() == 1) return tensor;
  tensor.info.shape.push_back(slice.columns);
  tensor.offsets.push_back(slice.column);
  return tensor;
}

}  // namespace

TrainingSteps::TrainingSteps(const TransferPlan& plan, std::size_t trainer_rank, Trainer& trainer)
    : trainer_(&trainer) {
  for (std::size_t version = 0; version < versions_.size(); ++version) {
    for (const auto& piece : plan.sources.ranks[trainer_rank].pieces)
      versions_[version].push_back(tensor_of(plan.model, piece, trainer.source(version)));
  }
  source_index_ = trainer.reserve();
}

}  // namespace weightcast
