#include "weightcast/model/scale_rules.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_size = 128;

/// Those of blocks that a range of rows or columns has; nothing when it begins or ends within one.
struct Blocks {
  std::uint64_t first = 0, count = 0;
};
std::optional<Blocks> blocks_of(std::uint64_t first, std::uint64_t count, std::uint64_t all) noexcept {
  const auto end = first + count;
  if (first % block_size != 0 || (end % block_size != 0 && end != all)) return std::nullopt;
  return Blocks{first / block_size, (count + block_size - 1) / block_size};
}

}  // namespace

std::optional<std::size_t> scales_parameter(const Model& model, std::size_t parameter) {
  const auto quantization = model.format.quantization;
  const auto& info = model.parameters[parameter].info;
  if (quantization == Quantization::none || info.dtype != DType::F8_E4M3) return std::nullopt;
  const auto matrix = model.find(info.name), scales = model.find(scale_name(info.name, quantization));
  if (matrix < 0 || scales < 0) return std::nullopt;
  return parameter - static_cast<std::size_t>(matrix) + static_cast<std::size_t>(scales);
}

std::optional<Slice> scales_of(Quantization quantization, const TensorInfo& matrix, const Slice& slice) noexcept {
  const auto [all_rows, all_columns] = matrix_of(matrix);
  if (quantization == Quantization::fp8_channel) {
    if (slice.columns != all_columns) return std::nullopt;
    return Slice{slice.row, 0, slice.rows, 1};
  }
  const auto rows = blocks_of(slice.row, slice.rows, all_rows);
  const auto columns = blocks_of(slice.column, slice.columns, all_columns);
  if (!rows || !columns) return std::nullopt;
  return Slice{rows->first, columns->first, rows->count, columns->count};
}

}  // namespace weightcast
