#include "weightcast/capi/destinations.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

StridedElements elements_of(const MatrixLayout& layout) {
  return {layout.columns,      0, layout.rows * layout.columns, layout.row_stride, layout.column_stride,
          layout.element_bytes};
}

}  // namespace

std::vector<std::uint64_t> shard_shape(const TransferPlan& plan, std::size_t tp_rank, std::size_t index) {
  const auto& rule = plan.model.parameters[index];
  const auto slice = shard_of(rule, plan.tp, tp_rank);
  return rule.info.shape.size() == 1 ? std::vector{slice.rows} : std::vector{slice.rows, slice.columns};
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
    throw Error(ExitCode::config,
                fmt::format("the table of destinations does not fit tp rank {}:\n  {}", tp_rank, list_lines(lines)),
                "give every parameter's shard once, in the model's dtype, by itself or in a fused engine tensor");
  }
};

Destinations::Destinations(const TransferPlan& plan, std::size_t tp_rank, Placement placement)
    : plan_(&plan), tp_rank_(tp_rank), placement_(placement) {}

std::optional<std::uint64_t> Destinations::find(const ForeignTensor& tensor, std::vector<std::size_t>& parameters,
                                                Problems& problems) const {
  const auto& info = tensor.info;
  auto index = plan_->model.find(info.name);
  // What is fused in checkpoints as well is given as the engine tensor that it becomes.
  if (index >= 0 && plan_->model.tensor_end(static_cast<std::size_t>(index)) > static_cast<std::size_t>(index) + 1)
    index = -1;
  const auto fused = std::find_if(plan_->engine_tensors.begin(), plan_->engine_tensors.end(),
                                  [&](const EngineTensor& candidate) { return candidate.name == info.name; });
  const bool has_fused = fused != plan_->engine_tensors.end();
  std::uint64_t offset = 0;
  std::string expected;
  if (index >= 0) {
    const auto p = static_cast<std::size_t>(index);
    const TensorInfo shard{info.name, plan_->model.parameters[p].info.dtype, shard_shape(*plan_, tp_rank_, p)};
    parameters = {p};
    offset = plan_->ranks[tp_rank_].shards[p].destination_offset;
    if (info == shard)
      expected.clear();
    else
      expected = shard.describe();
  }
  if (has_fused && (index < 0 || !expected.empty())) {
    const TensorInfo whole{info.name, fused->dtype, shape_of(*plan_, *fused)};
    parameters = fused->parameters;
    offset = fused->offset;
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
  return offset;
}

void Destinations::check_memory(const ForeignTensor& tensor, std::uint64_t offset,
                                std::vector<const ForeignTensor*>& usable, Problems& problems) {
  const auto& name = tensor.info.name;
  const auto layout = layout_of(tensor.info, tensor.strides_bytes);
  if (!layout) return problems.add("{} has strides that do not describe it", name);
  if (layout->columns == 0) return;
  const auto before = problems.lines.size();
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  const bool aligned = layout->aligned() && address % layout->element_bytes == 0;
  if (tensor.data == nullptr) problems.add("{} has no data", name);
  if (!aligned) problems.add("{} is not aligned as its elements are", name);
  if (aligned && !layout->elements_apart())
    problems.add("{} has elements that share memory, with strides of {} bytes", name,
                 fmt::join(tensor.strides_bytes, ", "));
  const bool same_place = tensor.placement.kind == placement_.kind &&
                          (placement_.kind == MemoryKind::host || tensor.placement.gpu == placement_.gpu);
  if (!same_place) problems.add("{} is not where this engine's memory is", name);
  if (problems.lines.size() > before) return;
  const Step step{offset, tensor.data, *layout};
  const bool tied_and_one = std::any_of(steps_.begin(), steps_.end(), [&](const Step& other) {
    return other.offset == offset && other.data == tensor.data && other.layout == *layout;
  });
  if (tied_and_one) return;
  steps_.push_back(step);
  usable.push_back(&tensor);
}

void Destinations::resolve(std::span<const ForeignTensor> tensors) {
  if (!resolved_.empty() && std::equal(tensors.begin(), tensors.end(), resolved_.begin(), resolved_.end())) return;
  const auto& rules = plan_->model.parameters;
  Problems problems;
  std::vector<const ForeignTensor*> holder(rules.size()), usable;
  resolved_.clear();
  steps_.clear();
  for (const auto& tensor : tensors) {
    std::vector<std::size_t> parameters;
    const auto offset = find(tensor, parameters, problems);
    for (const auto p : parameters) {  // a tensor of a wrong shape is wrong, but not missing
      const auto* const other = std::exchange(holder[p], &tensor);
      if (other == nullptr) continue;
      const bool tied = tensor.info.name != other->info.name && parameters.size() == 1 &&
                        plan_->model.find(other->info.name) == plan_->model.find(tensor.info.name);
      if (!tied)
        problems.add("{} is given twice, by {} and by {}", rules[p].info.name, other->info.name, tensor.info.name);
    }
    if (offset) check_memory(tensor, *offset, usable, problems);
  }
  for (std::size_t p = 0; p < rules.size(); ++p) {
    if (holder[p] == nullptr && plan_->ranks[tp_rank_].shards[p].rows > 0)
      problems.add("{} is missing", rules[p].info.name);
  }
  std::vector<PlacedMatrix> placed;
  for (const auto& step : steps_) placed.push_back({reinterpret_cast<std::uintptr_t>(step.data), step.layout});
  for (const auto& [first, second] : overlapping(placed))
    problems.add("{} overlaps another tensor of the table, {}", usable[second]->info.name, usable[first]->info.name);
  problems.throw_if_any(tp_rank_);
  resolved_.assign(tensors.begin(), tensors.end());
}

void Destinations::copy(const Region& slot, Deadline deadline) {
  if (slot.kind == MemoryKind::cuda) return copy_on_gpu(slot, deadline);
  if (!workers_) workers_.emplace(available_cores() - 1);
  std::atomic<std::size_t> next{0};
  workers_->run([&] {
    for (auto i = next++; i < steps_.size(); i = next++)
      scatter(elements_of(steps_[i].layout), steps_[i].data, slot.data + steps_[i].offset);
  });
}

void Destinations::copy_on_gpu(const Region& slot, Deadline deadline) {
  if (stream_.gpu() != slot.gpu) stream_ = gpu::Stream(slot.gpu);
  std::vector<const void*> from;
  std::vector<void*> to;
  std::vector<std::size_t> sizes;
  std::vector<gpu::CopyTask> strided;
  for (const auto& [offset, data, layout] : steps_) {
    const auto row_bytes = layout.columns * layout.element_bytes;
    if (layout.dense()) {
      from.push_back(slot.data + offset);
      to.push_back(data);
      sizes.push_back(row_bytes);
    } else if (layout.column_stride == static_cast<std::int64_t>(layout.element_bytes) && layout.row_stride > 0) {
      strided.push_back({offset, reinterpret_cast<std::uintptr_t>(data), row_bytes,
                         static_cast<std::uint64_t>(layout.row_stride), row_bytes, layout.rows});
    } else {
      gpu::scatter(elements_of(layout), data, slot.data + offset, stream_);
    }
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
