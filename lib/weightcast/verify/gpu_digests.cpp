#include "weightcast/verify/gpu_digests.hpp"

#include <algorithm>

namespace weightcast {
namespace {

constexpr std::uint64_t task_bytes = 128 * 1024;  // for each thread block; with 64 KiB a third slower
constexpr std::uint64_t run_bytes = 16 * 1024;    // for each warp
// 128 MiB, 0.1 ms: so long the engine's other kernels wait for one that fills the GPU. Two streams take turns, so that
// one begins while another ends.
constexpr std::size_t tasks_at_once = 1024;

/// Cuts a shard whose row 0 lies `data` bytes from the base into tasks.
void add_tasks(std::vector<gpu::DigestTask>& tasks, const Segment& shard, std::uint64_t data, std::uint64_t pitch,
               std::uint64_t offset, std::size_t result) {
  const auto add = [&](std::uint64_t at, std::uint64_t row_pitch, std::uint64_t from, std::uint64_t parameter_pitch,
                       std::uint64_t row_bytes, std::uint64_t rows) {
    tasks.push_back({at, from, row_pitch, parameter_pitch, shard.source + (from - offset),
                     static_cast<std::uint32_t>(row_bytes), static_cast<std::uint32_t>(rows),
                     static_cast<std::uint32_t>(result), 0});
  };
  if (shard.size_bytes() == 0) return;
  if (shard.contiguous_source() && (pitch == shard.row_bytes || shard.rows <= 1)) {
    const auto total = shard.size_bytes();
    for (std::uint64_t done = 0; done < total;) {
      const auto left = total - done;
      const auto rows = left >= run_bytes ? std::min(task_bytes, left) / run_bytes : 1;
      const auto row_bytes = std::min(run_bytes, left);
      add(data + done, row_bytes, offset + done, row_bytes, row_bytes, rows);
      done += rows * row_bytes;
    }
    return;
  }
  const auto step = std::max<std::uint64_t>(task_bytes / shard.row_bytes, 1);
  for (std::uint64_t row = 0; row < shard.rows; row += step) {
    add(data + row * pitch, pitch, offset + row * shard.source_pitch, shard.source_pitch, shard.row_bytes,
        std::min(step, shard.rows - row));
  }
}

}  // namespace

GpuDigests GpuDigests::of_slot(const TransferPlan& plan, std::size_t tp_rank, int gpu) {
  const auto parameters = plan.model.parameters.size();
  std::vector<std::vector<gpu::DigestTask>> tasks(parameters);
  for (std::size_t p = 0; p < parameters; ++p) {
    const auto& shard = plan.ranks[tp_rank].shards[p];
    add_tasks(tasks[p], shard, shard.destination, shard.destination_pitch, plan.offset_in_parameter(tp_rank, p), p);
  }
  return {parameters, parameters, std::move(tasks), gpu};
}

GpuDigests GpuDigests::of_source(const TransferPlan& plan, int gpu) {
  const auto parameters = plan.model.parameters.size();
  std::vector<std::vector<gpu::DigestTask>> tasks(parameters);
  for (std::size_t p = 0; p < parameters; ++p) {
    for (std::size_t t = 0; t < plan.tp; ++t) {
      const auto& shard = plan.ranks[t].shards[p];
      if (!plan.copy(t, p))
        add_tasks(tasks[p], shard, shard.source, shard.source_pitch, plan.offset_in_parameter(t, p),
                  t * parameters + p);
    }
  }
  return {parameters, plan.tp * parameters, std::move(tasks), gpu};
}

GpuDigests::GpuDigests(std::size_t parameters, std::size_t results,
                       std::vector<std::vector<gpu::DigestTask>> tasks_by_parameter, int gpu)
    : results_(results), stream_(gpu) {
  std::vector<gpu::DigestTask> tasks;
  for (std::size_t p = 0; p < parameters; ++p) {
    first_task_.push_back(tasks.size());
    tasks.insert(tasks.end(), tasks_by_parameter[p].begin(), tasks_by_parameter[p].end());
  }
  first_task_.push_back(tasks.size());
  const Placement placement(MemoryKind::cuda, gpu);
  tasks_ = Buffer::allocate(placement, tasks.size() * sizeof(gpu::DigestTask), false, "the digest plan");
  if (!tasks.empty()) write_region(tasks_.region(), 0, std::as_bytes(std::span(tasks)));
  sums_ = Buffer::allocate(placement, results * sizeof(Digest), false, "digests");
  pinned_.data = gpu::allocate_pinned(results * sizeof(Digest));
}

GpuDigests::~GpuDigests() = default;

void GpuDigests::begin(const std::byte* base) {
  base_ = base;
  gpu::zero(sums_.region().data, sums_.region().size_bytes, stream_);
}

void GpuDigests::queue(std::size_t first, std::size_t count, const gpu::Stream* after) {
  if (after != nullptr) stream_.after(*after);
  const auto begin = first_task_[first], end = first_task_[first + count];
  gpu::digest(reinterpret_cast<const gpu::DigestTask*>(tasks_.region().data) + begin, end - begin, base_,
              reinterpret_cast<std::uint64_t*>(sums_.region().data), stream_);
}

void GpuDigests::copy(std::size_t first, std::size_t count, const std::byte* source, std::byte* slot,
                      gpu::Stream& stream) {
  stream.after(stream_);  // its sums are zero
  const gpu::Stream* const streams[] = {&stream, &stream_};
  const auto end = first_task_[first + count];
  for (std::size_t begin = first_task_[first], i = 0; begin < end; begin += tasks_at_once, ++i) {
    gpu::copy_and_digest(reinterpret_cast<const gpu::DigestTask*>(tasks_.region().data) + begin,
                         std::min(tasks_at_once, end - begin), source, slot,
                         reinterpret_cast<std::uint64_t*>(sums_.region().data), *streams[i % 2]);
  }
  stream.after(stream_);
  stream_.after(stream);
}

std::span<const Digest> GpuDigests::finish(Deadline deadline) {
  gpu::fetch(pinned_.data, sums_.region().data, sums_.region().size_bytes, stream_);
  stream_.synchronize(deadline, "digesting weights");
  return {reinterpret_cast<const Digest*>(pinned_.data), results_};
}

}  // namespace weightcast
