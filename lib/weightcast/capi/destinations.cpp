#include "weightcast/capi/destinations.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::size_t reported_limit = 20;

std::vector<std::uint64_t> shape_of(const TensorInfo& like, std::uint64_t rows, std::uint64_t columns) {
  if (like.shape.size() == 1) return {rows};
  return {rows, columns};
}

}  // namespace

std::vector<std::uint64_t> shard_shape(const TransferPlan& plan, std::size_t tp_rank, std::size_t index) {
  const auto& rule = plan.model.parameters[index];
  const auto slice = shard_of(rule, plan.tp, tp_rank);
  return shape_of(rule.info, slice.rows, slice.columns);
}

std::vector<std::uint64_t> engine_tensor_shape(const TransferPlan& plan, const EngineTensor& tensor) {
  return shape_of(plan.model.parameters[tensor.parameters.front()].info, tensor.shape.rows, tensor.shape.columns);
}

/// What is wrong with a table, in the order in which it was found.
struct Destinations::Problems {
  std::vector<std::string> lines;
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    lines.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  void throw_if_any(std::size_t tp_rank) {
    if (lines.empty()) return;
    const auto count = lines.size();
    if (count > reported_limit) {
      lines.resize(reported_limit);
      lines.push_back(fmt::format("and {} more", count - reported_limit));
    }
    throw Error(
        ExitCode::config,
        fmt::format("the table of destinations does not fit tp rank {}:\n  {}", tp_rank, fmt::join(lines, "\n  ")),
        "give every parameter's shard once, by itself or in a fused engine tensor");
  }
};

Destinations::Destinations(const TransferPlan& plan, std::size_t tp_rank, Placement placement)
    : plan_(&plan), tp_rank_(tp_rank), placement_(placement) {}

std::optional<Destinations::Step> Destinations::find(const ForeignTensor& tensor, std::vector<std::size_t>& parameters,
                                                     Problems& problems) const {
  const auto& info = tensor.info;
  const auto index = plan_->model.find(info.name);
  const auto fused = std::find_if(plan_->engine_tensors.begin(), plan_->engine_tensors.end(),
                                  [&](const EngineTensor& candidate) { return candidate.name == info.name; });
  const bool has_fused = fused != plan_->engine_tensors.end();
  Step step;
  std::string expected;
  if (index >= 0) {
    const auto p = static_cast<std::size_t>(index);
    const TensorInfo shard{info.name, plan_->model.parameters[p].info.dtype, shard_shape(*plan_, tp_rank_, p)};
    parameters = {p};
    step.offset = plan_->ranks[tp_rank_].shards[p].destination;
    if (info == shard)
      expected.clear();
    else
      expected = shard.describe();
  }
  if (has_fused && (index < 0 || !expected.empty())) {
    const TensorInfo whole{info.name, fused->dtype, engine_tensor_shape(*plan_, *fused)};
    parameters = fused->parameters;
    step.offset = fused->offset;
    if (info == whole)
      expected.clear();
    else if (expected != whole.describe())
      expected += (expected.empty() ? "" : " or, padded, ") + whole.describe();
  }
  if (index < 0 && !has_fused) {
    problems.add("{}: the model has neither a parameter nor an engine tensor of this name", printable(info.name));
    return std::nullopt;
  }
  if (!expected.empty()) {
    problems.add("{} is {}, but this rank holds {}", info.name, info.describe(), expected);
    return std::nullopt;
  }
  const auto element_bytes = static_cast<std::uint64_t>(bits(info.dtype)) / 8;
  step.rows = info.shape.front();
  step.row_bytes = element_bytes * (info.shape.size() > 1 ? info.shape[1] : 1);
  step.pitch = tensor.row_pitch_bytes == 0 ? step.row_bytes : tensor.row_pitch_bytes;
  step.data = tensor.data;
  if (step.pitch == step.row_bytes || step.rows == 1) step = {step.offset, step.rows * step.row_bytes, 1, 0, step.data};
  return step;
}

void Destinations::resolve(std::span<const ForeignTensor> tensors) {
  const auto& rules = plan_->model.parameters;
  Problems problems;
  std::vector<const ForeignTensor*> holder(rules.size());
  std::vector<std::pair<Step, const ForeignTensor*>> accepted;
  steps_.clear();
  for (const auto& tensor : tensors) {
    std::vector<std::size_t> parameters;
    const auto step = find(tensor, parameters, problems);
    for (const auto p : parameters) {  // a tensor of a wrong shape is wrong, but not missing
      const auto* const other = std::exchange(holder[p], &tensor);
      if (other == nullptr) continue;
      const bool tied = tensor.info.name != other->info.name && parameters.size() == 1 &&
                        plan_->model.find(other->info.name) == plan_->model.find(tensor.info.name);
      if (tied && tensor.data == other->data) continue;
      if (tied) {
        problems.add("{} is not the memory of {}, to which it is tied", tensor.info.name, other->info.name);
      } else {
        problems.add("{} is given twice, by {} and by {}", rules[p].info.name, other->info.name, tensor.info.name);
      }
    }
    if (!step || step->row_bytes == 0 || step->rows == 0) continue;
    const auto address = reinterpret_cast<std::uintptr_t>(step->data);
    if (step->data == nullptr) problems.add("{} has no data", tensor.info.name);
    if (address % (static_cast<std::uint64_t>(bits(tensor.info.dtype)) / 8) != 0)
      problems.add("{} is not aligned as its elements are", tensor.info.name);
    if (step->rows > 1 && step->pitch < step->row_bytes)
      problems.add("{} has rows of {} bytes, {} apart", tensor.info.name, step->row_bytes, step->pitch);
    const bool same_place = tensor.placement.kind == placement_.kind &&
                            (placement_.kind == MemoryKind::host || tensor.placement.gpu == placement_.gpu);
    if (!same_place) problems.add("{} is not where this engine's memory is", tensor.info.name);
    accepted.emplace_back(*step, &tensor);
  }
  for (std::size_t p = 0; p < rules.size(); ++p) {
    if (holder[p] == nullptr && plan_->ranks[tp_rank_].shards[p].rows > 0)
      problems.add("{} is missing", rules[p].info.name);
  }
  std::stable_sort(accepted.begin(), accepted.end(),
                   [](const auto& a, const auto& b) { return a.first.data < b.first.data; });
  for (const auto& [step, tensor] : accepted) {
    if (!steps_.empty()) {
      const auto& before = steps_.back();
      if (before.data == step.data && before.offset == step.offset) continue;  // tied
      const bool dense = before.rows == 1 && step.rows == 1;                   // the rows of others may interleave
      if (before.data == step.data || (dense && before.data + before.row_bytes > step.data))
        problems.add("{} overlaps another tensor of the table", tensor->info.name);
    }
    steps_.push_back(step);
  }
  problems.throw_if_any(tp_rank_);
}

void Destinations::copy(const Region& slot, Deadline deadline) {
  if (slot.kind == MemoryKind::cuda) return copy_on_gpu(slot, deadline);
  if (!workers_) workers_.emplace(available_cores() - 1);
  std::atomic<std::size_t> next{0};
  workers_->run([&] {
    for (auto i = next++; i < steps_.size(); i = next++) {
      const auto& step = steps_[i];
      copy_rows(step.data, step.rows == 1 ? step.row_bytes : step.pitch, slot.data + step.offset, step.row_bytes,
                step.row_bytes, step.rows);
    }
  });
}

void Destinations::copy_on_gpu(const Region& slot, Deadline deadline) {
  if (stream_.gpu() != slot.gpu) stream_ = gpu::Stream(slot.gpu);
  std::vector<const void*> from;
  std::vector<void*> to;
  std::vector<std::size_t> sizes;
  std::vector<gpu::CopyTask> strided;
  for (const auto& step : steps_) {
    if (step.rows > 1) {
      strided.push_back({step.offset, reinterpret_cast<std::uintptr_t>(step.data), step.row_bytes, step.pitch,
                         step.row_bytes, step.rows});
      continue;
    }
    from.push_back(slot.data + step.offset);
    to.push_back(step.data);
    sizes.push_back(step.row_bytes);
  }
  gpu::copy_batch(to.data(), from.data(), sizes.data(), sizes.size(), stream_);
  Buffer tasks;
  if (!strided.empty()) {
    const auto bytes = std::as_bytes(std::span(strided));
    tasks = Buffer::allocate({MemoryKind::cuda, slot.gpu}, bytes.size(), false, "a list of strided copies");
    write_region(tasks.region(), 0, bytes);
    gpu::copy_strided(reinterpret_cast<const gpu::CopyTask*>(tasks.region().data), strided.size(), slot.data, nullptr,
                      stream_);
  }
  stream_.synchronize(deadline, "copying into the engine's tensors");
}

}  // namespace weightcast
