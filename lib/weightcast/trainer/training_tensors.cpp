#include "weightcast/trainer/training_tensors.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/delta/host_delta.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t step_bytes = 512 * kibibyte;

bool same_memory(const TrainingTensor& a, const TrainingTensor& b) {
  return a.data == b.data && a.info.dtype == b.info.dtype && layout_of(a) == layout_of(b);
}

}  // namespace

SourceFill::SourceFill(const TransferPlan& plan, std::size_t trainer_rank)
    : plan_(&plan), trainer_rank_(trainer_rank), staging_(threads_.count()), quantized_(plan, trainer_rank) {
  for (const auto& chunk : chunks_held(plan, trainer_rank, step_bytes)) {
    const auto of_parameter = plan.sources.ranks[trainer_rank].pieces_of(chunk.staged.parameter_index);
    const auto* const piece = &*(std::ranges::upper_bound(of_parameter, chunk.source_offset, {}, &Piece::offset) - 1);
    const auto& slice = chunk.staged.slice;
    steps_.push_back({chunk, static_cast<std::size_t>(piece - pieces().data()),
                      (slice.row - piece->slice.row) * slice.columns, slice.rows * slice.columns});
    step_elements_ = std::max(step_elements_, steps_.back().count);
  }
  reader_.emplace(step_elements_);
}

void SourceFill::match(std::span<const TrainingTensor> tensors) {
  const auto same = [](const TrainingTensor& tensor, const Known& known) {
    return tensor.info == known.info && tensor.offsets == known.offsets && tensor.full_shape == known.full_shape;
  };
  if (!matched_.empty() && std::equal(tensors.begin(), tensors.end(), matched_.begin(), matched_.end(), same)) return;
  matched_.clear();
  match_ = match_pieces(*plan_, trainer_rank_, tensors);
  for (const auto& tensor : tensors) matched_.push_back({tensor.info, tensor.offsets, tensor.full_shape});
}

const TrainingTensor* SourceFill::tensor_of(std::size_t piece_index,
                                            std::span<const TrainingTensor> tensors) const noexcept {
  const auto index = match_.tensor_index[piece_index];
  return index < 0 ? nullptr : &tensors[static_cast<std::size_t>(index)];
}

void SourceFill::check_memory(std::span<const TrainingTensor> tensors, const Region& region) const {
  std::vector<std::string> problems;
  const auto require = [&](bool good, const TrainingTensor& tensor, std::string_view problem) {
    if (!good) problems.push_back(fmt::format("{} {}", tensor.info.name, problem));
  };
  const auto check = [&](const TrainingTensor& tensor) {
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
    const auto layout = weightcast::layout_of(tensor.info, tensor.strides_bytes);
    require(tensor.data != nullptr || tensor.info.elements() == 0U, tensor, "has no data");
    require(layout.has_value(), tensor, "has strides that do not describe it");
    require(!layout || (layout->aligned() && address % layout->element_bytes == 0), tensor,
            "is not aligned as its elements are");
    require(!on_gpu(tensor) || region.kind != MemoryKind::cuda || tensor.placement.gpu == region.gpu, tensor,
            "is on another GPU than the trainer's weights");
  };
  for (std::size_t i = 0; i < match_.tensor_index.size(); ++i) {
    if (const auto* const tensor = tensor_of(i, tensors)) check(*tensor);
  }
  for (const auto& alias : match_.aliases) check(tensors[alias.tensor_index]);
  if (problems.empty()) return;
  throw Error(ExitCode::bad_data, fmt::format("training tensors cannot be used:\n  {}", list_lines(problems)),
              "give each tensor where it is, on the host or on the trainer's own GPU");
}

void SourceFill::bring(const Step& step, const TrainingTensor& tensor, std::byte* to, Staging& staging) {
  reader_->read(tensor, match_.first_element[step.piece_index] + step.first, step.count,
                rounding_of(tensor.info.dtype, parameter_of(step.piece_index).dtype), to, staging.given);
}

void SourceFill::fill_by_host(const Step& step, const TrainingTensor& tensor, const Region& region, SourceClaim& claim,
                              std::uint32_t* marks, Staging& staging) {
  const auto wire = parameter_of(step.piece_index).dtype;
  const bool to_gpu = region.kind == MemoryKind::cuda;
  if (on_gpu(tensor) && to_gpu) return;  // fill_by_gpu()'s
  const std::byte* given = nullptr;
  if (to_gpu && tensor.info.dtype == wire && layout_of(tensor).dense()) {
    given = bytes_of(tensor) + (match_.first_element[step.piece_index] + step.first) * element_bytes(wire);
  } else {
    const bool staged = to_gpu || marks != nullptr;
    if (staged) staging.sent.resize(8 * step_elements_);
    auto* const to = staged ? staging.sent.data() : region.data + step.source_offset;
    bring(step, tensor, to, staging);
    given = to;
  }
  claim.add(step, given);
  if (to_gpu) return write_region(region, step.source_offset, {given, step.size_bytes});
  if (marks == nullptr) return;
  auto* const held = region.data + step.source_offset;
  mark_changes(held, given, step.source_offset / delta_unit_bytes, step.size_bytes / delta_unit_bytes, marks);
  std::memcpy(held, given, step.size_bytes);
}

bool SourceFill::by_one_kernel(std::size_t piece_index, const TrainingTensor& tensor) const {
  if (match_.by_quantizing[piece_index]) return false;
  const auto rounding = rounding_of(tensor.info.dtype, parameter_of(piece_index).dtype);
  return layout_of(tensor).dense() && (!rounding || rounding->from == WideFloat::f32);
}

void SourceFill::fill_by_gpu(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                             std::uint32_t* marks, Deadline deadline) {
  if (region.kind != MemoryKind::cuda) return;
  if (!digests_ || digests_->target().stream->gpu() != region.gpu)
    digests_ = GpuDigests::of_pieces(*plan_, region.gpu, trainer_rank_);
  digests_->begin(region.data);
  const auto& stream = *digests_->target().stream;
  for (const auto& piece : match_.quantized) {
    const auto& tensor = *tensor_of(piece.piece_index, tensors);
    if (on_gpu(tensor)) quantized_.by_gpu(piece, tensor, match_.first_element[piece.piece_index], region, stream);
  }
  std::vector<std::size_t> filled;  // parameters, ascending
  for (std::size_t i = 0; i < pieces().size(); ++i) {
    const auto* const tensor = tensor_of(i, tensors);
    if (tensor == nullptr || !on_gpu(*tensor)) continue;
    const auto offset = pieces()[i].offset;
    if (const auto p = pieces()[i].parameter_index; filled.empty() || filled.back() != p) filled.push_back(p);
    if (match_.by_quantizing[i]) {
      digests_->queue({i, 1}, gpu::Share::all, nullptr);
      continue;
    }
    const auto layout = layout_of(*tensor);
    const auto rounding = rounding_of(tensor->info.dtype, parameter_of(i).dtype);
    const auto first = match_.first_element[i];
    if (by_one_kernel(i, *tensor)) {
      digests_->fill(i,
                     {bytes_of(*tensor) + first * layout.element_bytes, offset,
                      rounding ? std::optional(rounding->to) : std::nullopt, marks},
                     region.data);
      continue;
    }
    const auto& slice = pieces()[i].slice;
    gpu::gather(elements_of(layout, first, slice.rows * slice.columns), rounding, region.data + offset,
                bytes_of(*tensor), stream);
    digests_->queue({i, 1}, gpu::Share::all, nullptr);
  }
  const auto results = digests_->finish(deadline);
  for (const auto p : filled) claim.add(p, results);
}

void SourceFill::run(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                     SourceChanges& changes, Deadline deadline) {
  match(tensors);
  fill(tensors, region, claim, changes, deadline);
}

std::optional<std::size_t> SourceFill::match_one(const TrainingTensor& tensor) {
  matched_.clear();
  match_ = match_piece(*plan_, trainer_rank_, tensor);
  const auto piece = std::ranges::find(match_.tensor_index, 0);
  if (piece == match_.tensor_index.end()) return std::nullopt;
  return static_cast<std::size_t>(piece - match_.tensor_index.begin());
}

std::optional<std::size_t> SourceFill::put(const TrainingTensor& tensor, const Region& region, SourceClaim& claim,
                                           SourceChanges& changes, Deadline deadline) {
  const auto index = match_one(tensor);
  if (index) fill({&tensor, 1}, region, claim, changes, deadline);
  return index;
}

void SourceFill::expect_held(const TrainingTensor& tensor, std::string_view other, const Region& region,
                             Deadline deadline) {
  const auto index = match_one(tensor);
  if (!index) return;
  reader_->set_deadline(deadline);
  check_memory({&tensor, 1}, region);
  expect_tied(*index, tensor, other, [&](const Step& step, std::span<std::byte> held, Staging&) {
    read_region(region, step.source_offset, held);
  });
}

void SourceFill::expect_tied(std::size_t piece_index, const TrainingTensor& tensor, std::string_view other,
                             FunctionRef<void(const Step&, std::span<std::byte>, Staging&)> bring_other) {
  std::atomic<bool> equal{true};
  for_each_step([&](const Step& step, Staging& staging) {
    if (step.piece_index != piece_index || !equal) return;
    staging.sent.resize(8 * step_elements_);
    staging.compared.resize(8 * step_elements_);
    const auto compared = std::span(staging.compared).first(step.size_bytes);
    bring(step, tensor, staging.sent.data(), staging);
    bring_other(step, compared, staging);
    if (std::memcmp(staging.sent.data(), compared.data(), compared.size()) != 0) equal = false;
  });
  if (equal) return;
  throw Error(ExitCode::bad_data, fmt::format("{} differs from {}, to which it is tied", tensor.info.name, other),
              "tied weights are sent once: give one of the two, or the same values as both");
}

void SourceFill::fill(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                      SourceChanges& changes, Deadline deadline) {
  check_memory(tensors, region);
  reader_->set_deadline(deadline);
  for (const auto& alias : match_.aliases) {
    const auto& head = tensors[alias.tensor_index];
    const auto& embedding = *tensor_of(alias.piece_index, tensors);
    if (same_memory(head, embedding)) continue;
    expect_tied(alias.piece_index, head, embedding.info.name,
                [&](const Step& step, std::span<std::byte> to, Staging& staging) {
                  bring(step, embedding, to.data(), staging);
                });
  }
  for (std::size_t i = 0; i < pieces().size(); ++i) {
    const auto* const tensor = tensor_of(i, tensors);
    if (tensor == nullptr) continue;
    claim.forget(pieces()[i].parameter_index);
    if (region.kind == MemoryKind::cuda && !(on_gpu(*tensor) && by_one_kernel(i, *tensor))) changes.forget();
  }
  auto* const marks = changes.marks();
  for_each_step([&](const Step& step, Staging& staging) {
    const auto* const tensor = tensor_of(step.piece_index, tensors);
    if (tensor == nullptr || match_.by_quantizing[step.piece_index]) return;
    fill_by_host(step, *tensor, region, claim, marks, staging);
  });
  quantized_.by_host(tensors, match_, region, claim, marks, deadline, threads_);
  fill_by_gpu(tensors, region, claim, marks, deadline);
  complete(tensors, claim);
}

void SourceFill::complete(std::span<const TrainingTensor> tensors, SourceClaim& claim) const {
  std::size_t i = 0;
  for (std::size_t p = 0; p < plan_->model.parameters.size(); ++p) {
    bool all = true;
    for (; i < pieces().size() && pieces()[i].parameter_index == p; ++i) all = all && tensor_of(i, tensors) != nullptr;
    if (all) claim.complete(p);  // also of what this rank has nothing of
  }
}

void SourceFill::for_each_step(FunctionRef<void(const Step&, Staging&)> work) {
  threads_.run(steps_.size(), [&](std::size_t index, std::size_t thread) { work(steps_[index], staging_[thread]); });
}

}  // namespace weightcast
