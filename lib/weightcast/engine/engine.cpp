#include "weightcast/engine/engine.hpp"

#include "weightcast/core/bytes.hpp"

namespace weightcast {
namespace {

std::size_t index_of(const TransferPlan& plan, std::string_view name) {
  const auto index = plan.model.find(name);
  if (index < 0)
    throw Error(ExitCode::usage, fmt::format("the model has no parameter {}", printable(name)),
                "weightcast plan lists the names");
  return static_cast<std::size_t>(index);
}

Error trainer_has_left() {
  return {ExitCode::unavailable, "the trainer has left the group"};
}

}  // namespace

std::optional<UpdateResult> Engine::receive(Deadline wait, CheckClaim check) {
  return times_.timed([&] { return scheduler_.update("receive()", any_version, {wait}, false, check); });
}

const UpdateResult& Answer::throw_if_refused() const {
  if (error) throw Error(*error);
  return result;
}

Engine::Engine(const TransferPlan& plan, std::size_t tp_rank, CommitMode mode, Placement placement)
    : plan_(&plan), runner_(plan, tp_rank, mode, placement), worker_(plan, runner_), scheduler_(worker_, tp_rank) {}

Engine::~Engine() {
  try {
    shutdown();
  } catch (const std::exception&) {  // not serving, or nobody there to hear it
  }
}

void Engine::load(std::uint64_t version, const Reference& reference, std::size_t threads,
                  const std::function<void(std::uint64_t)>& progress) {
  scheduler_.expect_no_group("load()");
  runner_.load(version, reference, threads, progress);
}

void Engine::init_parameter_update_group(const Communicator& parent, const GroupOptions& options, Driver driver) {
  scheduler_.expect_no_group("init_parameter_update_group()");
  scheduler_.join(std::make_unique<UpdateGroup>(parent, *plan_, options, std::vector<const Buffer*>(), &store()),
                  driver);
}

void Engine::serve() {
  scheduler_.serve();
}

Answer Engine::answer(std::string_view verb, std::uint64_t version, bool empty_cache, CheckClaim check) {
  return times_.timed([&]() -> Answer {
    try {
      const auto result = scheduler_.update(verb, version, {}, empty_cache, check);
      if (!result) return {false, "the trainer has left the group", ExitCode::unavailable, {}, trainer_has_left()};
      // Short enough to need no memory: an update allocates nothing.
      return {true, result->committed ? "served" : "received", ExitCode::ok, *result};
    } catch (const Error& error) {
      if (error.reach() == Error::Reach::lost) throw;
      const std::string_view text = error.what();
      const bool named = error.origin().rank < 0 || text.starts_with("rank");
      return {false,
              named ? std::string(text) : fmt::format("rank {}: {}", error.origin().rank, text),
              error.code(),
              {},
              error};
    }
  });
}

Answer Engine::update_parameter_from_distributed(std::string_view name, DType dtype,
                                                 const std::vector<std::uint64_t>& shape, bool empty_cache) {
  return answer("update_parameter_from_distributed()", any_version, empty_cache, [&](const UpdateClaim& claim) {
    const auto index = index_of(*plan_, name);
    const auto& info = plan_->model.parameters[index].info;
    if (dtype != info.dtype || shape != info.shape) {
      const TensorInfo expected{info.name, dtype, shape};
      fail(ExitCode::config, "{} is {}, not {}", info.name, info.describe(), expected.describe());
    }
    if (claim.first_parameter != index || claim.parameters != plan_->model.tensor_end(index) - index)
      fail(ExitCode::config, "the trainer does not send {}", info.name);
  });
}

Answer Engine::update_weights(std::uint64_t version) {
  return answer("update_weights()", version, false, {});
}

Answer Engine::rollback(std::uint64_t version) {
  return answer("rollback()", version, false, [](const UpdateClaim& claim) {
    if (claim.kind != UpdateKind::rollback)
      fail(ExitCode::config, "the trainer publishes version {}, it does not roll back", claim.version);
  });
}

WeightRows Engine::get_weights_by_parameter_name(std::string_view name, std::uint64_t truncate_size) {
  return read_times_.timed([&] { return scheduler_.rows(index_of(*plan_, name), truncate_size); });
}

Probe Engine::probe(const std::vector<std::string>& names) {
  return read_times_.timed([&] {
    std::vector<std::size_t> parameters;
    for (const auto& name : names) parameters.push_back(index_of(*plan_, name));
    return scheduler_.probe(parameters);
  });
}

Scrub Engine::scrub() {
  return scrub_times_.timed([&] { return scheduler_.scrub(); });
}

void Engine::shutdown() {
  scheduler_.shutdown();
}

}  // namespace weightcast
