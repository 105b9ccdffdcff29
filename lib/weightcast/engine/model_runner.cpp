#include "weightcast/engine/model_runner.hpp"

#include <algorithm>

#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {

Slice first_rows(const Slice& shard, std::uint64_t rows) {
  Slice part = shard;
  part.rows = shard.row < rows ? std::min(shard.rows, rows - shard.row) : 0;
  return part;
}

ModelRunner::ModelRunner(const TransferPlan& plan, std::size_t tp_rank, CommitMode mode, Placement placement)
    : plan_(&plan), tp_rank_(tp_rank), store_(plan, mode, placement) {
  if (placement.kind == MemoryKind::cuda) gpu_digests_.emplace(GpuDigests::of_shards(plan, tp_rank, placement.gpu));
}

void ModelRunner::load(std::uint64_t version, const Reference& reference, std::size_t threads,
                       const std::function<void(std::uint64_t)>& progress) {
  const auto slot = store_.stage(Deadline::after(1));
  try {
    fill_from_reference(*plan_, tp_rank_, store_.slots()[slot], reference, threads, progress);
  } catch (...) {
    store_.drop();
    throw;
  }
  store_.publish({version, {}});
}

std::optional<UpdateResult> ModelRunner::update(UpdateGroup& group, UpdateWait wait, bool empty_cache,
                                                CheckClaim check) {
  return times.timed([&] {
    const auto result =
        group.receive(wait.until.value_or(Deadline::after(group.options().timeout_s)), check, wait.give_up);
    if (!result) return result;
    stages.note(*result);
    if (empty_cache) group.release_cache();
    return result;
  });
}

std::vector<std::byte> ModelRunner::rows(const ParameterStore::Pin& pin, std::size_t parameter, std::uint64_t rows) {
  return read_times.timed([&] {
    const auto& rule = plan_->model.parameters[parameter];
    const auto part = first_rows(shard_of(rule, plan_->tp, tp_rank_), rows);
    if (part.empty() || plan_->copy(tp_rank_, parameter)) return std::vector<std::byte>();
    const auto width = element_bytes(rule.info.dtype);
    std::vector<std::byte> packed(part.rows * part.columns * width);
    read_region(pin.slot(), plan_->ranks[tp_rank_].shards[parameter].destination_offset, packed);
    return packed;
  });
}

std::vector<Digest> ModelRunner::digests(const ParameterStore::Pin& pin, std::size_t first, std::size_t count,
                                         Deadline deadline) {
  return read_times.timed([&] {
    std::vector<Digest> result(count);
    const auto* slot = pin.slot().data;
    std::span<const Digest> by_gpu;
    if (gpu_digests_) {
      gpu_digests_->begin(slot);
      gpu_digests_->queue({first, count}, gpu::Share::all, nullptr);
      by_gpu = gpu_digests_->finish(deadline);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const auto parameter = first + i;
      if (plan_->copy(tp_rank_, parameter)) continue;
      result[i] = gpu_digests_ ? by_gpu[parameter] : digest_of_shard(*plan_, tp_rank_, parameter, slot);
    }
    return result;
  });
}

bool ModelRunner::scrub(UpdateGroup& group, const ParameterStore::Pin& pin, Deadline deadline) {
  return scrub_times.timed([&] { return group.scrub(pin, deadline); });
}

}  // namespace weightcast
