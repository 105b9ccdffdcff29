#include "weightcast/trainer/training_tensors.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t step_elements = 256 * 1024;
constexpr std::size_t reported_limit = 20;

std::uint64_t width_bytes(DType dtype) noexcept {
  return static_cast<std::uint64_t>(bits(dtype)) / 8;
}

/// What F32 is rounded to on its way to a parameter of that type, if it can be.
std::optional<NarrowFloat> narrow_float(DType wire) noexcept {
  if (wire == DType::BF16) return NarrowFloat::bf16;
  if (wire == DType::F16) return NarrowFloat::f16;
  return std::nullopt;
}

const std::byte* bytes_of(const TrainingTensor& tensor) noexcept {
  return static_cast<const std::byte*>(tensor.data);
}

}  // namespace

SourceFill::SourceFill(const TransferPlan& plan) : plan_(&plan) {
  const auto& parameters = plan.model.parameters;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const auto elements = parameters[p].info.elements().value();
    for (std::uint64_t first = 0; first < elements; first += step_elements)
      steps_.push_back({p, first, std::min(step_elements, elements - first)});
  }
  from_.reserve(parameters.size());
  to_.reserve(parameters.size());
  sizes_.reserve(parameters.size());
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
    if (tensor.info.dtype == DType::F32 && tensor.info.shape == expected.shape && narrow_float(expected.dtype))
      as_sent.back().dtype = expected.dtype;
  }
  try {
    match_ = match_tensors(plan_->model, as_sent, "the table of training tensors");
  } catch (const Error& error) {
    throw Error(error.code(), error.what(), "give each parameter once, in its own dtype, or as F32 for BF16 and F16");
  }
  matched_ = std::move(given);
}

void SourceFill::check_memory(std::span<const TrainingTensor> tensors, const Region& region) const {
  std::vector<std::string> problems;
  const auto require = [&](bool good, const TrainingTensor& tensor, std::string_view problem) {
    if (!good) problems.push_back(fmt::format("{} {}", tensor.info.name, problem));
  };
  for (const auto index : match_.source) {
    if (index < 0) continue;
    const auto& tensor = tensors[static_cast<std::size_t>(index)];
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
    const bool on_gpu = tensor.placement.kind == MemoryKind::cuda;
    require(tensor.data != nullptr, tensor, "has no data");
    require(address % std::max<std::uint64_t>(width_bytes(tensor.info.dtype), 1) == 0, tensor,
            "is not aligned as its elements are");
    require(!on_gpu || region.kind != MemoryKind::cuda || tensor.placement.gpu == region.gpu, tensor,
            "is on another GPU than the trainer's weights");
  }
  if (match_.alias >= 0) {
    const auto& alias = tensors[static_cast<std::size_t>(match_.alias)];
    const auto& embedding = tensors[static_cast<std::size_t>(match_.source.front())];
    require(alias.data == embedding.data, alias, "is not the memory of the embedding that it is tied to");
  }
  if (problems.empty()) return;
  const auto count = problems.size();
  if (count > reported_limit) {
    problems.resize(reported_limit);
    problems.push_back(fmt::format("and {} more", count - reported_limit));
  }
  throw Error(ExitCode::bad_data, fmt::format("training tensors cannot be used:\n  {}", fmt::join(problems, "\n  ")),
              "give each tensor where it is, on the host or on the trainer's own GPU");
}

void SourceFill::fill_by_host(const Step& step, const TrainingTensor& tensor, const Region& region,
                              std::vector<std::byte>& staging) const {
  const auto wire = plan_->model.parameters[step.parameter].info.dtype;
  const bool from_gpu = tensor.placement.kind == MemoryKind::cuda, to_gpu = region.kind == MemoryKind::cuda;
  const auto at = plan_->source_offsets[step.parameter] + step.first * width_bytes(wire);
  const std::byte* from = bytes_of(tensor) + step.first * width_bytes(tensor.info.dtype);
  const std::span to(region.data + at, step.count * width_bytes(wire));
  if (from_gpu && to_gpu) return;  // fill_by_gpu()'s
  if (tensor.info.dtype == wire) {
    if (from_gpu) return gpu::download(tensor.placement.gpu, to.data(), from, to.size());
    return write_region(region, at, {from, to.size()});
  }
  if (from_gpu || to_gpu) staging.resize(4 * step_elements);  // floats of a GPU, or what is rounded for one
  if (from_gpu) {
    gpu::download(tensor.placement.gpu, staging.data(), from, 4 * step.count);
    from = staging.data();
  }
  narrow(*narrow_float(wire), to_gpu ? staging.data() : to.data(), from, step.count);
  if (to_gpu) write_region(region, at, std::span(staging).first(to.size()));
}

void SourceFill::fill_by_gpu(std::span<const TrainingTensor> tensors, const Region& region, Deadline deadline) {
  if (region.kind != MemoryKind::cuda) return;
  if (stream_.gpu() != region.gpu) stream_ = gpu::Stream(region.gpu);
  from_.clear();
  to_.clear();
  sizes_.clear();
  for (std::size_t p = 0; p < match_.source.size(); ++p) {
    if (match_.source[p] < 0) continue;
    const auto& tensor = tensors[static_cast<std::size_t>(match_.source[p])];
    const auto& info = plan_->model.parameters[p].info;
    std::byte* const to = region.data + plan_->source_offsets[p];
    if (tensor.placement.kind != MemoryKind::cuda) continue;
    if (tensor.info.dtype != info.dtype) {
      gpu::narrow(*narrow_float(info.dtype), to, bytes_of(tensor), *info.elements(), stream_);
    } else if (*info.size_bytes() > 0) {
      from_.push_back(tensor.data);
      to_.push_back(to);
      sizes_.push_back(*info.size_bytes());
    }
  }
  gpu::copy_batch(to_.data(), from_.data(), sizes_.data(), sizes_.size(), stream_);
  stream_.synchronize(deadline, "filling the trainer's weights");
}

void SourceFill::run(std::span<const TrainingTensor> tensors, const Region& region, Deadline deadline) {
  match(tensors);
  fill(tensors, region, deadline);
}

std::size_t SourceFill::put(const TrainingTensor& tensor, const Region& region, Deadline deadline) {
  const auto& parameters = plan_->model.parameters;
  const auto found = plan_->model.find(tensor.info.name);
  if (found < 0) fail(ExitCode::bad_data, "the model has no parameter {}", printable(tensor.info.name));
  const auto index = static_cast<std::size_t>(found);
  const auto& expected = parameters[index].info;
  if (tensor.info.name != expected.name)
    fail(ExitCode::bad_data, "{} is tied to {}, which brings it", tensor.info.name, expected.name);
  const bool rounded = tensor.info.dtype == DType::F32 && narrow_float(expected.dtype);
  if (tensor.info.shape != expected.shape || (tensor.info.dtype != expected.dtype && !rounded)) {
    fail(ExitCode::bad_data, "{} is {} here and {} in the model", expected.name, tensor.info.describe(),
         expected.describe());
  }
  matched_.clear();
  match_ = {};
  match_.source.assign(parameters.size(), -1);
  match_.source[index] = 0;
  fill({&tensor, 1}, region, deadline);
  return index;
}

void SourceFill::fill(std::span<const TrainingTensor> tensors, const Region& region, Deadline deadline) {
  check_memory(tensors, region);
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
      for (auto i = next_step++; i < steps_.size(); i = next_step++) {
        const auto source = match_.source[steps_[i].parameter];
        if (source >= 0) fill_by_host(steps_[i], tensors[static_cast<std::size_t>(source)], region, staging);
      }
    } catch (...) {
      next_step = steps_.size();
      const std::scoped_lock lock(mutex);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
  fill_by_gpu(tensors, region, deadline);
}

}  // namespace weightcast
