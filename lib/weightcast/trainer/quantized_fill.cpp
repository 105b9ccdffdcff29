#include "weightcast/trainer/quantized_fill.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "weightcast/core/bytes.hpp"
#include "weightcast/delta/host_delta.hpp"
#include "weightcast/model/scale_rules.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t band_elements = 512 * kibibyte;  // about, where rows have their own scales

/// Rows of a tensor as they lie in memory, if each lies in one piece; `first` is the first row's first element.
std::optional<FloatMatrix> rows_of(const TrainingTensor& tensor, std::uint64_t first, std::uint64_t rows,
                                   std::uint64_t columns) {
  const auto layout = layout_of(tensor);
  const auto type = wide_of(tensor.info.dtype).value();
  const auto width = layout.element_bytes;
  if (layout.dense()) return FloatMatrix{bytes_of(tensor) + first * width, type, rows, columns, columns};
  const auto stride = static_cast<std::uint64_t>(layout.row_stride);
  if (layout.columns != columns || layout.column_stride != static_cast<std::int64_t>(width) || layout.row_stride < 0 ||
      stride < columns * width || stride % width != 0)
    return std::nullopt;
  return FloatMatrix{bytes_of(tensor) + first / columns * stride, type, rows, columns, stride / width};
}

/// Elements of a matrix that were brought together.
FloatMatrix dense_rows(const TrainingTensor& tensor, const std::byte* data, std::uint64_t rows, std::uint64_t columns) {
  return {data, wide_of(tensor.info.dtype).value(), rows, columns, columns};
}

/// What has been made gets to its place; what differs from what was there is marked.
void place(const Chunk& chunk, const std::byte* made, const Region& region, std::uint32_t* marks) {
  if (region.kind == MemoryKind::cuda) return write_region(region, chunk.source_offset, {made, chunk.size_bytes});
  auto* const held = region.data + chunk.source_offset;
  if (made == held) return;
  if (marks != nullptr)
    mark_changes(held, made, chunk.source_offset / delta_unit_bytes, chunk.size_bytes / delta_unit_bytes, marks);
  std::memcpy(held, made, chunk.size_bytes);
}

/// Rows of a chunk that is a piece.
Chunk part_of(const Chunk& whole, std::uint64_t row, std::uint64_t rows) {
  auto part = whole;
  part.source_offset += row * whole.staged.pitch;
  part.size_bytes = rows * whole.staged.pitch;
  part.staged.slice.row += row;
  part.staged.slice.rows = rows;
  return part;
}

}  // namespace

QuantizedFill::QuantizedFill(const TransferPlan& plan, std::size_t trainer_rank) {
  const auto& model = plan.model;
  const auto quantization = model.format.quantization;
  if (quantization == Quantization::none) return;
  kind_ = scale_kind(quantization);
  const auto chunks = chunks_held(plan, trainer_rank, std::numeric_limits<std::uint64_t>::max());  // whole pieces
  const auto& pieces = plan.sources.ranks[trainer_rank].pieces;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto parameter = pieces[i].parameter_index;
    const auto scales_index = scales_parameter(model, parameter);
    const auto part = scales_index ? scales_of(quantization, model.parameters[parameter].info, pieces[i].slice)
                                   : std::optional<Slice>();
    if (!part) continue;
    const auto chunk_of = [&](std::size_t p, const Slice& slice) {
      const auto held = chunks_of(chunks, {p, 1});
      return std::find_if(held.begin(), held.end(), [&](const Chunk& c) { return c.staged.slice == slice; });
    };
    const auto of_scales = chunks_of(chunks, {*scales_index, 1});
    if (const auto scales = chunk_of(*scales_index, *part); scales != of_scales.end())
      add_bands(i, *chunk_of(parameter, pieces[i].slice), *scales);
  }
  reader_.emplace(most_elements_);
}

void QuantizedFill::add_bands(std::size_t piece_index, const Chunk& matrix, const Chunk& scales) {
  const auto rows = matrix.staged.slice.rows, columns = matrix.staged.slice.columns;
  const auto most = kind_ == ScaleKind::block ? scale_block : std::max<std::uint64_t>(band_elements / columns, 1);
  for (std::uint64_t row = 0; row < rows; row += most) {
    const auto count = std::min(most, rows - row);
    bands_.push_back({piece_index, part_of(matrix, row, count),
                      part_of(scales, kind_ == ScaleKind::block ? row / scale_block : row, scale_rows(kind_, count)),
                      row * columns});
    most_elements_ = std::max(most_elements_, count * columns);
    most_scales_ = std::max(most_scales_, scale_rows(kind_, count) * scale_columns(kind_, columns));
  }
}

std::span<const QuantizedFill::Band> QuantizedFill::bands_of(std::size_t piece_index) const noexcept {
  const auto begin = std::ranges::lower_bound(bands_, piece_index, {}, &Band::piece_index);
  return {begin, std::ranges::upper_bound(begin, bands_.end(), piece_index, {}, &Band::piece_index)};
}

void QuantizedFill::fill(const Band& band, const TrainingTensor& tensor, std::uint64_t first_element,
                         const Region& region, SourceClaim& claim, std::uint32_t* marks, Staging& staging) {
  const auto& slice = band.elements.staged.slice;
  const auto first = first_element + band.first, count = slice.rows * slice.columns;
  auto given = on_gpu(tensor) ? std::nullopt : rows_of(tensor, first, slice.rows, slice.columns);
  if (!given) {
    staging.given.resize(4 * most_elements_);
    reader_->read(tensor, first, count, std::nullopt, staging.given.data(), staging.given);
    given = dense_rows(tensor, staging.given.data(), slice.rows, slice.columns);
  }
  auto* const elements =
      !staging.elements.empty() ? staging.elements.data() : region.data + band.elements.source_offset;
  quantize(kind_, *given, {elements, slice.columns, staging.scales.data(), scale_columns(kind_, slice.columns)});
  const auto* const scales = std::as_bytes(std::span<const float>(staging.scales)).data();
  claim.add(band.elements, elements);
  claim.add(band.scales, scales);
  place(band.elements, elements, region, marks);
  place(band.scales, scales, region, marks);
}

void QuantizedFill::by_host(std::span<const TrainingTensor> tensors, const PieceMatch& match, const Region& region,
                            SourceClaim& claim, std::uint32_t* marks, Deadline deadline, FillThreads& threads) {
  if (match.quantized.empty()) return;
  // Of all threads, also of those that come too late to work this time: then no later run takes any.
  const bool staged = region.kind == MemoryKind::cuda || marks != nullptr;
  staging_.resize(threads.count());
  for (auto& staging : staging_) {
    staging.scales.resize(most_scales_);
    staging.elements.resize(staged ? most_elements_ : 0);
  }
  reader_->set_deadline(deadline);
  threads.run(bands_.size(), [&](std::size_t index, std::size_t thread) {
    const auto& band = bands_[index];
    if (!match.by_quantizing[band.piece_index]) return;
    const auto& tensor = tensors[static_cast<std::size_t>(match.tensor_index[band.piece_index])];
    if (on_gpu(tensor) && region.kind == MemoryKind::cuda) return;
    fill(band, tensor, match.first_element[band.piece_index], region, claim, marks, staging_[thread]);
  });
}

void QuantizedFill::by_gpu(const PieceMatch::Quantized& piece, const TrainingTensor& tensor,
                           std::uint64_t first_element, const Region& region, const gpu::Stream& stream) {
  const auto destination = [&](const Band& band) {
    const auto columns = band.elements.staged.slice.columns;
    return Fp8Matrix{region.data + band.elements.source_offset, columns,
                     reinterpret_cast<float*>(region.data + band.scales.source_offset), scale_columns(kind_, columns)};
  };
  const auto bands = bands_of(piece.piece_index);
  const auto columns = bands.front().elements.staged.slice.columns;
  std::uint64_t rows = 0;
  for (const auto& band : bands) rows += band.elements.staged.slice.rows;
  if (const auto given = rows_of(tensor, first_element, rows, columns))
    return gpu::quantize(kind_, *given, destination(bands.front()), stream);
  if (gathered_.region().gpu != region.gpu || gathered_.region().size_bytes == 0) {
    gathered_ = Buffer::allocate({MemoryKind::cuda, region.gpu}, 4 * most_elements_, false,
                                 "bringing strided tensors together");
  }
  auto* const dense = gathered_.region().data;
  for (const auto& band : bands) {  // one after the other, on one stream: each is done with the memory
    const auto count = band.elements.staged.slice.rows;
    gpu::gather(elements_of(layout_of(tensor), first_element + band.first, count * columns), std::nullopt, dense,
                bytes_of(tensor), stream);
    gpu::quantize(kind_, dense_rows(tensor, dense, count, columns), destination(band), stream);
  }
}

}  // namespace weightcast
