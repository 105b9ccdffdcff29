#include "weightcast/engine/engine.hpp"

#include <algorithm>
#include <cstring>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {
namespace {

/// Which of the first `rows` rows a shard has, as a slice of the parameter.
Slice first_rows(const Slice& shard, std::uint64_t rows) {
  Slice part = shard;
  part.rows = shard.row < rows ? std::min(shard.rows, rows - shard.row) : 0;
  return part;
}

std::uint64_t element_bytes(const TensorInfo& info) {
  return static_cast<std::uint64_t>(bits(info.dtype)) / 8;
}

std::uint64_t row_count(const TensorInfo& info) {
  return info.shape.empty() ? 1 : info.shape[0];
}

std::size_t index_of(const TransferPlan& plan, std::string_view name) {
  const auto index = plan.model.find(name);
  if (index < 0)
    throw Error(ExitCode::usage, fmt::format("the model has no parameter {}", printable(name)),
                "weightcast plan lists the names");
  return static_cast<std::size_t>(index);
}

}  // namespace

void ModelRunner::load(std::uint64_t version, const ReadReference& read, std::size_t threads,
                       const std::function<void(std::uint64_t)>& progress) {
  const auto slot = store_.stage(Deadline::after(1));
  try {
    const auto region = store_.slots()[slot];
    // Weights for a GPU are put together on the host.
    const bool direct = region.kind == MemoryKind::host;
    const auto host = direct ? Buffer() : Buffer::host(region.size_bytes, false, "loading weights");
    fill_from_reference(*plan_, tp_rank_, direct ? region.bytes() : host.region().bytes(), read, threads, progress);
    if (!direct) write_region(region, 0, host.region().bytes());
  } catch (...) {
    store_.drop();
    throw;
  }
  store_.publish({version, {}});
}

UpdateResult ModelRunner::update(UpdateGroup& group, CheckClaim check) {
  return times.timed([&] {
    const auto result = group.receive(check);
    std::size_t i = 0;
    for (const auto seconds : {result.prepare_s, result.stage_s, result.verify_s, result.vote_s, result.commit_s})
      stages[i++].note(seconds);
    return result;
  });
}

std::vector<std::byte> ModelRunner::rows(std::size_t parameter, std::uint64_t rows) {
  return times.timed([&] {
    const auto& rule = plan_->model.parameters[parameter];
    const auto& shard = plan_->ranks[tp_rank_].shards[parameter];
    const auto part = first_rows(shard_of(rule, plan_->tp, tp_rank_), rows);
    if (part.empty() || plan_->copy(tp_rank_, parameter)) return std::vector<std::byte>();
    const auto width = part.columns * element_bytes(rule.info);
    std::vector<std::byte> packed(part.rows * width);
    const auto pin = store_.pin();
    read_region(pin.slot(), shard.destination, packed);
    return packed;
  });
}

UpdateResult TpWorker::update(UpdateGroup& group, CheckClaim check) {
  return times.timed([&] { return runner_->update(group, check); });
}

std::vector<float> TpWorker::rows(UpdateGroup& group, std::size_t parameter, std::uint64_t rows) {
  return times.timed([&] {
    const auto& rule = plan_->model.parameters[parameter];
    const auto& replica = group.replica();
    const auto deadline = Deadline::after(group.options().timeout_s);
    rows = std::min(rows, row_count(rule.info));
    const auto columns = *rule.info.elements() / std::max<std::uint64_t>(row_count(rule.info), 1);
    std::vector<std::byte> packed;
    agree(replica, "read", deadline, [&] { packed = runner_->rows(parameter, rows); });
    packed.resize(replica.max(packed.size(), deadline));
    const auto all = replica.gather(packed, 0, deadline);
    std::vector<float> result;
    if (replica.rank() != 0) return result;
    result.resize(rows * columns);
    const auto width = element_bytes(rule.info);
    for (std::size_t t = 0; t < plan_->tp; ++t) {
      if (plan_->copy(t, parameter)) continue;
      const auto part = first_rows(shard_of(rule, plan_->tp, t), rows);
      for (std::uint64_t i = 0; i < part.rows * part.columns; ++i) {
        const auto value = to_float(rule.info.dtype, all.data() + t * packed.size() + i * width);
        result[(part.row + i / part.columns) * columns + part.column + i % part.columns] = value.value_or(0);
      }
    }
    return result;
  });
}

void Scheduler::join(std::unique_ptr<UpdateGroup> group) {
  group_ = std::move(group);
}

UpdateGroup& Scheduler::group() const {
  if (!group_) throw Error(ExitCode::config, "there is no update group yet", "call init_parameter_update_group first");
  return *group_;
}

UpdateResult Scheduler::update(CheckClaim check) {
  return times.timed([&] { return worker_->update(group(), check); });
}

std::vector<float> Scheduler::rows(std::size_t parameter, std::uint64_t rows) {
  return times.timed([&] { return worker_->rows(group(), parameter, rows); });
}

void Answer::throw_if_refused() const {
  if (success) return;
  Error error(code, message);
  error.set_reach(Error::Reach::everybody);
  throw error;
}

void Engine::init_parameter_update_group(
    const Communicator& parent, const GroupOptions& options,
    const std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)>& wrap) {
  scheduler_.join(std::make_unique<UpdateGroup>(parent, *plan_, options, std::vector<const Buffer*>(), &store(), wrap));
}

Answer Engine::update_parameter_from_distributed(std::string_view name, DType dtype,
                                                 const std::vector<std::uint64_t>& shape, bool empty_cache) {
  return times_.timed([&]() -> Answer {
    try {
      const auto result = scheduler_.update([&](const UpdateClaim& claim) {
        const auto index = index_of(*plan_, name);
        const auto& info = plan_->model.parameters[index].info;
        if (info.dtype != dtype || info.shape != shape) {
          fail(ExitCode::config, "{} is {}, not {}", info.name, info.describe(),
               TensorInfo{info.name, dtype, shape}.describe());
        }
        if (claim.first_parameter != index || claim.parameters != 1)
          fail(ExitCode::config, "the trainer does not send {}", info.name);
      });
      if (empty_cache) group().release_cache();
      return {true, result.committed ? fmt::format("version {} is served", result.version)
                                     : fmt::format("{} received", printable(name))};
    } catch (const Error& error) {
      if (error.reach() != Error::Reach::everybody) throw;
      return {false, error.what(), error.code()};
    }
  });
}

UpdateResult Engine::update_weights() {
  return times_.timed([&] { return scheduler_.update({}); });
}

std::vector<float> Engine::get_weights_by_parameter_name(std::string_view name, std::uint64_t truncate_size) {
  return times_.timed([&] { return scheduler_.rows(index_of(*plan_, name), truncate_size); });
}

}  // namespace weightcast
