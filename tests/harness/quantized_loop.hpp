#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "harness/piece_loop.hpp"
#include "weightcast/device/quantize.hpp"
#include "weightcast/model/scale_rules.hpp"

/// Training loops for engines in fp8, and what comes of them.
namespace weightcast::harness {

inline ScaleKind kind_of(const Model& model) {
  return scale_kind(model.format.quantization);
}

/// By parameter, whether it has a matrix's scales.
inline std::vector<bool> are_scales(const Model& model) {
  std::vector<bool> scales(model.parameters.size());
  for (std::size_t p = 0; p < scales.size(); ++p) {
    if (const auto index = scales_parameter(model, p)) scales[*index] = true;
  }
  return scales;
}

/// As whole_masters(), finite and neither large nor small: of random bits nearly all blocks have a NaN.
inline std::vector<std::vector<std::byte>> finite_masters(const Model& model, DType dtype, std::uint64_t seed) {
  auto masters = whole_masters(model, dtype, seed);
  for (std::size_t p = 0; p < masters.size(); ++p) {
    const auto width = element_bytes(given_for(model.parameters[p], dtype));
    for (auto at = width - 1; at < masters[p].size(); at += width)
      masters[p][at] = (masters[p][at] & std::byte{0x83}) | std::byte{0x3c};
  }
  return masters;
}

/// What is sent of them: each tensor quantised whole, its scales under their own names.
inline std::vector<std::vector<std::byte>> as_quantized(const Model& model,
                                                        const std::vector<std::vector<std::byte>>& masters,
                                                        DType given) {
  auto sent = masters;
  for (std::size_t p = 0; p < masters.size(); ++p) {
    const auto& info = model.parameters[p].info;
    const auto scales = scales_parameter(model, p);
    if (!scales) {
      if (const auto rounding = rounding_of(given, info.dtype)) {
        sent[p].resize(masters[p].size() / width_bytes(rounding->from) * 2);
        narrow(rounding->to, sent[p].data(), masters[p].data(), sent[p].size() / 2, rounding->from);
      }
      continue;
    }
    const auto [rows, columns] = matrix_of(info);
    const auto scale_row = scale_columns(kind_of(model), columns);
    std::vector<float> made(scale_rows(kind_of(model), rows) * scale_row);
    sent[p].resize(rows * columns);
    quantize(kind_of(model), {masters[p].data(), wide_of(given).value(), rows, columns, columns},
             {sent[p].data(), columns, made.data(), scale_row});
    sent[*scales].resize(made.size() * sizeof(float));
    std::memcpy(sent[*scales].data(), made.data(), sent[*scales].size());
  }
  return sent;
}

/// What a loop has that knows nothing of scales.
inline void remove_scales(const Model& model, std::vector<TrainingTensor>& tensors) {
  const auto scales = are_scales(model);
  std::erase_if(tensors, [&](const TrainingTensor& tensor) {
    return scales[static_cast<std::size_t>(model.find(tensor.info.name))];
  });
}

}  // namespace weightcast::harness
