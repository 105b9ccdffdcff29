#include "weightcast/trainer/training_tensors.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t step_bytes = 512 * kibibyte;

/// How elements of type `given` become those of a parameter of type `wire`, to nearest, ties to even: F32 and F16 for
/// BF16, F32 and BF16 for F16. Nothing for any other pair: equal ones are copied, and the others are not taken.
std::optional<Rounding> rounding_of(DType given, DType wire) noexcept {
  if (wire == DType::BF16 && given == DType::F32) return Rounding{NarrowFloat::bf16, WideFloat::f32};
  if (wire == DType::BF16 && given == DType::F16) return Rounding{NarrowFloat::bf16, WideFloat::f16};
  if (wire == DType::F16 && given == DType::F32) return Rounding{NarrowFloat::f16, WideFloat::f32};
  if (wire == DType::F16 && given == DType::BF16) return Rounding{NarrowFloat::f16, WideFloat::bf16};
  return std::nullopt;
}

const std::byte* bytes_of(const TrainingTensor& tensor) noexcept {
  return static_cast<const std::byte*>(tensor.data);
}

bool on_gpu(const TrainingTensor& tensor) noexcept {
  return tensor.placement.kind == MemoryKind::cuda;
}

/// Of a tensor that check_memory() has seen.
MatrixLayout layout_of(const TrainingTensor& tensor) {
  return *layout_of(tensor.info, tensor.strides_bytes);
}

StridedElements elements_of(const MatrixLayout& layout, std::uint64_t first, std::uint64_t count) {
  return {layout.columns, first, count, layout.row_stride, layout.column_stride, layout.element_bytes};
}

bool same_memory(const TrainingTensor& a, const TrainingTensor& b) {
  return a.data == b.data && a.info.dtype == b.info.dtype && layout_of(a) == layout_of(b);
}

}  // namespace

SourceFill::SourceFill(const TransferPlan& plan) : plan_(&plan) {
  for (const auto& chunk : chunks_of(plan, step_bytes)) {
    const auto& [parameter, slice, offset, pitch] = chunk.staged;
    steps_.push_back({chunk, parameter, slice.row * slice.columns, slice.rows * slice.columns});
    step_elements_ = std::max(step_elements_, steps_.back().count);
  }
}

void SourceFill::match(std::span<const TrainingTensor> tensors) {
  const auto same = [](const TrainingTensor& tensor, const TensorInfo& info) { return tensor.info == info; };
  if (!matched_.empty() && std::equal(tensors.begin(), tensors.end(), matched_.begin(), matched_.end(), same)) return;
  matched_.clear();
  std::vector<TensorInfo> given, as_sent;
  for (const auto& tensor : tensors) {
    given.push_back(tensor.info);
    as_sent.push_back(tensor.info);
    const auto index = plan_->model.find(tensor.info.name);
    if (index < 0) continue;
    const auto& expected = plan_->model.parameters[static_cast<std::size_t>(index)].info;
    if (tensor.info.shape == expected.shape && rounding_of(tensor.info.dtype, expected.dtype))
      as_sent.back().dtype = expected.dtype;
  }
  try {
    match_ = match_tensors(plan_->model, as_sent, "the table of training tensors");
  } catch (const Error& error) {
    throw Error(error.code(), error.what(),
                "give each parameter once, in its own dtype; BF16 also as F32 or F16, F16 also as F32 or BF16");
  }
  matched_ = std::move(given);
}

void SourceFill::check_memory(std::span<const TrainingTensor> tensors, const Region& region) const {
  std::vector<std::string> problems;
  const auto require = [&](bool good, const TrainingTensor& tensor, std::string_view problem) {
    if (!good) problems.push_back(fmt::format("{} {}", tensor.info.name, problem));
  };
  const auto check = [&](std::ptrdiff_t index) {
    if (index < 0) return;
    const auto& tensor = tensors[static_cast<std::size_t>(index)];
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
    const auto layout = weightcast::layout_of(tensor.info, tensor.strides_bytes);
    require(tensor.data != nullptr || tensor.info.elements() == 0U, tensor, "has no data");
    require(layout.has_value(), tensor, "has strides that do not describe it");
    require(!layout || (layout->aligned() && address % layout->element_bytes == 0), tensor,
            "is not aligned as its elements are");
    require(!on_gpu(tensor) || region.kind != MemoryKind::cuda || tensor.placement.gpu == region.gpu, tensor,
            "is on another GPU than the trainer's weights");
  };
  std::for_each(match_.tensor_index.begin(), match_.tensor_index.end(), check);
  check(match_.alias);
  if (problems.empty()) return;
  throw Error(ExitCode::bad_data, fmt::format("training tensors cannot be used:\n  {}", list_lines(problems)),
              "give each tensor where it is, on the host or on the trainer's own GPU");
}

void SourceFill::bring(const Step& step, const TrainingTensor& tensor, std::byte* to, Staging& staging) {
  const auto wire = plan_->model.parameters[step.parameter].info.dtype;
  const auto rounding = rounding_of(tensor.info.dtype, wire);
  const auto layout = layout_of(tensor);
  const auto given_bytes = step.count * layout.element_bytes, sent_bytes = step.count * element_bytes(wire);
  if (on_gpu(tensor) && !layout.dense()) {
    const Placement placement(MemoryKind::cuda, tensor.placement.gpu);
    const std::scoped_lock turn(gatherer_.mutex);
    if (gatherer_.stream.gpu() != placement.gpu) {
      gatherer_.memory = Buffer::allocate(placement, 8 * step_elements_, false, "bringing strided tensors together");
      gatherer_.stream = gpu::Stream(placement.gpu);
    }
    auto* const dense = gatherer_.memory.region().data;
    gpu::gather(elements_of(layout, step.first, step.count), rounding, dense, bytes_of(tensor), gatherer_.stream);
    gatherer_.stream.synchronize(gatherer_.deadline, "bringing a strided tensor together");
    return gpu::download(placement.gpu, to, dense, sent_bytes);
  }
  const std::byte* from = layout.dense() ? bytes_of(tensor) + step.first * layout.element_bytes : bytes_of(tensor);
  std::byte* given = to;
  if (rounding && (on_gpu(tensor) || !layout.dense())) {
    staging.given.resize(4 * step_elements_);
    given = staging.given.data();
  }
  if (on_gpu(tensor)) {
    gpu::download(tensor.placement.gpu, given, from, given_bytes);
  } else if (!layout.dense()) {
    gather(elements_of(layout, step.first, step.count), given, from);
  } else if (rounding) {
    given = const_cast<std::byte*>(from);  // only read from here on
  } else {
    std::memcpy(to, from, given_bytes);
  }
  if (rounding) narrow(rounding->to, to, given, step.count, rounding->from);
}

void SourceFill::fill_by_host(const Step& step, const TrainingTensor& tensor, const Region& region, SourceClaim& claim,
                              Staging& staging) {
  const auto wire = plan_->model.parameters[step.parameter].info.dtype;
  const bool to_gpu = region.kind == MemoryKind::cuda;
  if (on_gpu(tensor) && to_gpu) return;  // fill_by_gpu()'s
  const std::byte* given = nullptr;
  if (to_gpu && tensor.info.dtype == wire && layout_of(tensor).dense()) {
    given = bytes_of(tensor) + step.first * element_bytes(wire);
  } else {
    if (to_gpu) staging.sent.resize(8 * step_elements_);
    auto* const to = to_gpu ? staging.sent.data() : region.data + step.source_offset;
    bring(step, tensor, to, staging);
    given = to;
  }
  claim.add(step.staged, given);
  if (to_gpu) write_region(region, step.source_offset, {given, step.size_bytes});
}

void SourceFill::fill_by_gpu(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                             Deadline deadline) {
  if (region.kind != MemoryKind::cuda) return;
  if (!digests_ || digests_->target().stream->gpu() != region.gpu) digests_ = GpuDigests::of_source(*plan_, region.gpu);
  digests_->begin(region.data);
  const auto filled = [&](std::size_t p) {
    return match_.tensor_index[p] >= 0 && on_gpu(tensors[static_cast<std::size_t>(match_.tensor_index[p])]);
  };
  for (std::size_t p = 0; p < match_.tensor_index.size(); ++p) {
    if (!filled(p)) continue;
    const auto& tensor = tensors[static_cast<std::size_t>(match_.tensor_index[p])];
    const auto& info = plan_->model.parameters[p].info;
    const auto layout = layout_of(tensor);
    const auto rounding = rounding_of(tensor.info.dtype, info.dtype);
    if (layout.dense() && (!rounding || rounding->from == WideFloat::f32)) {
      digests_->fill(p,
                     {bytes_of(tensor), plan_->source_offset(p), rounding ? std::optional(rounding->to) : std::nullopt},
                     region.data);
      continue;
    }
    gpu::gather(elements_of(layout, 0, *info.elements()), rounding, region.data + plan_->source_offset(p),
                bytes_of(tensor), *digests_->target().stream);
    digests_->queue({p, 1}, gpu::Share::all, nullptr);
  }
  const auto results = digests_->finish(deadline);
  for (std::size_t p = 0; p < match_.tensor_index.size(); ++p) {
    if (filled(p)) claim.add(p, results);
  }
}

void SourceFill::run(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                     Deadline deadline) {
  match(tensors);
  fill(tensors, region, claim, deadline);
}

std::size_t SourceFill::match_one(const TrainingTensor& tensor) {
  const auto& parameters = plan_->model.parameters;
  const auto found = plan_->model.find(tensor.info.name);
  if (found < 0) fail(ExitCode::bad_data, "the model has no parameter {}", printable(tensor.info.name));
  const auto index = static_cast<std::size_t>(found);
  const auto& expected = parameters[index].info;
  const bool fits = tensor.info.dtype == expected.dtype || rounding_of(tensor.info.dtype, expected.dtype);
  if (tensor.info.shape != expected.shape || !fits) {
    fail(ExitCode::bad_data, "{} is {} here and {} in the model", tensor.info.name, tensor.info.describe(),
         expected.describe());
  }
  matched_.clear();
  match_ = {};
  match_.tensor_index.assign(parameters.size(), -1);
  match_.tensor_index[index] = 0;
  return index;
}

std::size_t SourceFill::put(const TrainingTensor& tensor, const Region& region, SourceClaim& claim, Deadline deadline) {
  const auto index = match_one(tensor);
  fill({&tensor, 1}, region, claim, deadline);
  return index;
}

void SourceFill::expect_held(const TrainingTensor& tensor, std::string_view other, const Region& region,
                             Deadline deadline) {
  const auto index = match_one(tensor);
  gatherer_.deadline = deadline;
  check_memory({&tensor, 1}, region);
  const auto width = element_bytes(plan_->model.parameters[index].info.dtype);
  expect_tied(index, tensor, other, [&](const Step& step, std::span<std::byte> held, Staging&) {
    read_region(region, plan_->source_offset(index) + step.first * width, held);
  });
}

void SourceFill::expect_tied(std::size_t parameter, const TrainingTensor& tensor, std::string_view other,
                             FunctionRef<void(const Step&, std::span<std::byte>, Staging&)> bring_other) {
  const auto width = element_bytes(plan_->model.parameters[parameter].info.dtype);
  std::atomic<bool> equal{true};
  for_each_step([&](const Step& step, Staging& staging) {
    if (step.parameter != parameter || !equal) return;
    staging.sent.resize(8 * step_elements_);
    staging.compared.resize(8 * step_elements_);
    const auto compared = std::span(staging.compared).first(step.count * width);
    bring(step, tensor, staging.sent.data(), staging);
    bring_other(step, compared, staging);
    if (std::memcmp(staging.sent.data(), compared.data(), compared.size()) != 0) equal = false;
  });
  if (equal) return;
  throw Error(ExitCode::bad_data, fmt::format("{} differs from {}, to which it is tied", tensor.info.name, other),
              "tied weights are sent once: give one of the two, or the same values as both");
}

void SourceFill::fill(std::span<const TrainingTensor> tensors, const Region& region, SourceClaim& claim,
                      Deadline deadline) {
  check_memory(tensors, region);
  gatherer_.deadline = deadline;
  if (match_.alias >= 0) {
    const auto& head = tensors[static_cast<std::size_t>(match_.alias)];
    const auto& embedding = tensors[static_cast<std::size_t>(match_.tensor_index.front())];
    if (!same_memory(head, embedding)) {
      expect_tied(0, head, embedding.info.name, [&](const Step& step, std::span<std::byte> to, Staging& staging) {
        bring(step, embedding, to.data(), staging);
      });
    }
  }
  const auto each = [&](auto&& act) {
    for (std::size_t p = 0; p < match_.tensor_index.size(); ++p) {
      if (match_.tensor_index[p] >= 0) act(p);
    }
  };
  each([&](std::size_t p) { claim.forget(p); });
  for_each_step([&](const Step& step, Staging& staging) {
    const auto source = match_.tensor_index[step.parameter];
    if (source >= 0) fill_by_host(step, tensors[static_cast<std::size_t>(source)], region, claim, staging);
  });
  fill_by_gpu(tensors, region, claim, deadline);
  each([&](std::size_t p) { claim.complete(p); });
}

void SourceFill::for_each_step(FunctionRef<void(const Step&, Staging&)> work) {
  if (!workers_) {
    staging_.resize(available_cores());
    workers_.emplace(staging_.size() - 1);
  }
  std::atomic<std::size_t> next_step{0}, next_staging{0};
  std::exception_ptr first;
  std::mutex mutex;
  workers_->run([&] {
    try {
      auto& staging = staging_[next_staging++];
      for (auto i = next_step++; i < steps_.size(); i = next_step++) work(steps_[i], staging);
    } catch (...) {
      next_step = steps_.size();
      const std::scoped_lock lock(mutex);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

}  // namespace weightcast
