#include "weightcast/plan/source_layout.hpp"

#include "weightcast/core/bytes.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

SourceLayout whole_layout(const Model& model) {
  SourceRegion region;
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto& rule = model.parameters[p];
    const auto shape = matrix_of(rule.info);
    region.pieces.push_back(
        {p, {0, 0, shape.rows, shape.columns}, region.size_bytes, shape.columns * element_bytes(rule)});
    region.size_bytes += round_up(rule.info.size_bytes().value(), TransferPlan::alignment_bytes);
  }
  return {{std::move(region)}};
}

}  // namespace weightcast
