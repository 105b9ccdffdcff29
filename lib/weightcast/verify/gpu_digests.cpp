#include "weightcast/verify/gpu_digests.hpp"

#include <algorithm>
#include <utility>

namespace weightcast {
namespace {

/// Appends a segment's tasks; `data` and `pitch` are where what is digested lies.
void append(std::vector<gpu::DigestTask>& list, const Segment& segment, std::uint64_t Segment::*data,
            std::uint64_t Segment::*pitch, std::size_t result) {
  std::vector<Segment> tasks;
  append_tasks(segment, digest_block_bytes, tasks);
  for (const auto& task : tasks) {
    list.push_back({task.*data, task.parameter_offset, task.*pitch, task.parameter_pitch, task.source_offset,
                    task.source_pitch, static_cast<std::uint32_t>(task.row_bytes),
                    static_cast<std::uint32_t>(task.rows), static_cast<std::uint32_t>(result), 0});
  }
}

/// Appends the tasks of a segment in a slot.
void append_held(std::vector<gpu::DigestTask>& list, const Segment& segment) {
  append(list, segment, &Segment::destination_offset, &Segment::destination_pitch, segment.parameter_index);
}

/// Appends the tasks of all that a trainer rank has, each piece's to `list_of(piece)`.
template <typename ListOf>
void append_source(const TransferPlan& plan, std::size_t trainer_rank, const ListOf& list_of) {
  const auto add = [&](const Piece& piece, const Segment& segment, std::size_t t) {
    append(list_of(piece), segment, &Segment::source_offset, &Segment::source_pitch,
           t * plan.model.parameters.size() + piece.parameter_index);
  };
  for (const auto& holding : holdings_of(plan.sources)) {
    for (const auto& [holder, piece] : holding.holders) {
      if (holder != trainer_rank) continue;
      const bool speaks = holding.speaker().from == trainer_rank;
      if (!speaks) add(piece, segment_of(plan.model, piece), plan.tp);
      for (std::size_t t = 0; speaks && t < plan.tp; ++t) {
        const auto segment = segment_of(plan, t, piece);
        if (segment.rows != 0 && !plan.copy(t, piece.parameter_index)) add(piece, segment, t);
      }
    }
  }
}

}  // namespace

GpuDigests GpuDigests::of_slot(const TransferPlan& plan, std::size_t tp_rank, int gpu) {
  std::vector<std::vector<gpu::DigestTask>> tasks;
  for (const auto& segment : plan.ranks[tp_rank].schedule.segments) append_held(tasks.emplace_back(), segment);
  return {plan.model.parameters.size(), tasks, gpu};
}

GpuDigests GpuDigests::of_shards(const TransferPlan& plan, std::size_t tp_rank, int gpu) {
  std::vector<std::vector<gpu::DigestTask>> tasks(plan.model.parameters.size());
  for (const auto& segment : plan.ranks[tp_rank].schedule.segments)
    append_held(tasks[segment.parameter_index], segment);
  return {plan.model.parameters.size(), tasks, gpu};
}

GpuDigests GpuDigests::of_source(const TransferPlan& plan, int gpu, std::size_t trainer_rank) {
  const auto parameters = plan.model.parameters.size();
  std::vector<std::vector<gpu::DigestTask>> tasks(parameters);
  append_source(
      plan, trainer_rank, [&](const Piece& piece) -> auto& { return tasks[piece.parameter_index]; });
  return {(plan.tp + 1) * parameters, tasks, gpu};
}

GpuDigests GpuDigests::of_pieces(const TransferPlan& plan, int gpu, std::size_t trainer_rank) {
  const auto& pieces = plan.sources.ranks.at(trainer_rank).pieces;
  std::vector<std::vector<gpu::DigestTask>> tasks(pieces.size());
  append_source(
      plan, trainer_rank, [&](const Piece& piece) -> auto& {
        const auto place = [](const Piece& p) { return std::pair(p.parameter_index, p.offset); };
        return tasks[static_cast<std::size_t>(std::ranges::lower_bound(pieces, place(piece), {}, place) -
                                              pieces.begin())];
      });
  return {(plan.tp + 1) * plan.model.parameters.size(), tasks, gpu};
}

GpuDigests::GpuDigests(std::size_t results, const std::vector<std::vector<gpu::DigestTask>>& tasks_by_item, int gpu)
    : results_(results), stream_(gpu) {
  std::vector<gpu::DigestTask> tasks;
  for (const auto& of_item : tasks_by_item) {
    first_task_.push_back(tasks.size());
    tasks.insert(tasks.end(), of_item.begin(), of_item.end());
  }
  first_task_.push_back(tasks.size());
  const Placement placement(MemoryKind::cuda, gpu);
  tasks_ = Buffer::allocate(placement, tasks.size() * sizeof(gpu::DigestTask), false, "the digest plan");
  if (!tasks.empty()) write_region(tasks_.region(), 0, std::as_bytes(std::span(tasks)));
  sums_ = Buffer::allocate(placement, results * sizeof(Digest), false, "digests");
  fetched_ = Staging(sums_.region(), results * sizeof(Digest));
}

void GpuDigests::begin(const std::byte* base) {
  base_ = base;
  fetching_ = false;
  gpu::zero(sums_.region().data, sums_.region().size_bytes, stream_);
}

void GpuDigests::queue(const Range& items, gpu::Share share, const gpu::Stream* after) {
  fetching_ = false;
  if (after != nullptr) stream_.after(*after);
  const auto begin = first_task_[items.first], end = first_task_[items.end()];
  const auto to = target();
  gpu::digest(to.tasks + begin, end - begin, base_, to.sums, share, stream_);
}

void GpuDigests::fill(std::size_t item, const gpu::CopySource& source, std::byte* base) {
  fetching_ = false;
  const auto begin = first_task_[item], end = first_task_[item + 1];
  const auto to = target();
  gpu::copy_and_digest(to.tasks + begin, end - begin, source, base, to.sums, gpu::Share::all, stream_);
}

void GpuDigests::fetch() {
  gpu::fetch(fetched_.first(sums_.region().size_bytes).data(), sums_.region().data, sums_.region().size_bytes, stream_);
  fetching_ = true;
}

gpu::DigestTarget GpuDigests::target() noexcept {
  return {reinterpret_cast<const gpu::DigestTask*>(tasks_.region().data), first_task_,
          reinterpret_cast<std::uint64_t*>(sums_.region().data), &stream_};
}

std::span<const Digest> GpuDigests::finish(Deadline deadline) {
  if (!fetching_) fetch();
  stream_.synchronize(deadline, "digesting weights");
  fetching_ = false;
  return {reinterpret_cast<const Digest*>(fetched_.first(sums_.region().size_bytes).data()), results_};
}

}  // namespace weightcast
