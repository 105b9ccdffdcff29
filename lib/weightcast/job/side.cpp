#include "weightcast/job/side.hpp"

#include <algorithm>

#include "weightcast/comm/reason.hpp"
#include "weightcast/job/placement.hpp"
#include "weightcast/job/stop.hpp"

namespace weightcast {
namespace {

/// `reference`, which looks whether the job goes on.
Reference attentive(Reference reference, const Pulse& pulse) {
  reference.look = [&pulse] {
    stop_if_asked();
    pulse.check();
  };
  return reference;
}

}  // namespace

Reference reference_of(const WeightSource& source) {
  const auto read = [&source](std::size_t parameter, std::uint64_t offset, std::span<std::byte> to) {
    source.read(parameter, offset, to);
  };
  return {read, source.generators()};
}

Side::Side(const Job& job, const TransferPlan& plan, Placement placement, CommitMode commit)
    : job_(&job), plan_(&plan), placement_(placement), commit_(commit) {}

void Side::expect_room(std::size_t published) const {
  const auto rank = job_->world().rank();
  const auto bytes = plan_->roster().trainer(rank) ? published * plan_->source_bytes(static_cast<std::size_t>(rank))
                                                   : (commit_ == CommitMode::swap ? 2 : 1) * plan_->slot_bytes;
  weightcast::expect_room(job_->world(), placement_, bytes, job_->deadline());
}

void Side::create() {
  if (plan_->roster().trainer(job_->world().rank())) {
    trainer_ = std::make_unique<Trainer>(*plan_, placement_, static_cast<std::size_t>(job_->world().rank()));
    publishing_ = std::make_unique<Publishing>();
  } else {
    engine_ = std::make_unique<Engine>(*plan_, tp_rank(), commit_, placement_);
  }
}

void Side::load(const std::vector<const WeightSource*>& published, const WeightSource& served,
                FunctionRef<void(std::uint64_t bytes)> progress) {
  expect_room(published.size());
  const auto threads = threads_per_rank(job_->world(), job_->deadline());
  const auto ranks = static_cast<std::uint64_t>(job_->world().size());
  job_->agree_patiently("load", plan_->model.size_bytes() * (ranks + 1), [&](const Pulse& pulse) {
    create();
    if (engine_) engine_->load(1, attentive(reference_of(served), pulse), threads);
    const auto look = [&](std::uint64_t bytes) {
      stop_if_asked();
      pulse.check();
      if (progress) progress(bytes);
    };
    for (const auto* source : published) {
      if (trainer_) trainer_->load(*source, threads, look);
    }
  });
}

void Side::form_group(GroupOptions options, std::uint64_t served_version) {
  options.tp = plan_->tp;
  options.dp = plan_->dp;
  options.placement = placement_;
  if (trainer_) trainer_->init_parameter_update_group(job_->world(), options, served_version);
  if (engine_) engine_->init_parameter_update_group(job_->world(), options);
}

UpdateResult Side::publish(FunctionRef<UpdateResult()> call) {
  const auto result = publishing_->times.timed(call);
  publishing_->stages.note(result);
  return result;
}

UpdateResult Side::update(std::size_t source_index, std::uint64_t version, Granularity granularity) {
  if (granularity == Granularity::model) {
    if (trainer_) return publish([&] { return trainer_->update_weights(source_index, version); });
    return engine_->update_weights(version).throw_if_refused();
  }
  UpdateResult total;
  for (const auto first : plan_->model.tensors()) {
    const auto& info = plan_->model.parameters[first].info;
    auto call = trainer_
                    ? publish([&] { return trainer_->update_parameter(source_index, version, info.name); })
                    : engine_->update_parameter_from_distributed(info.name, info.dtype, info.shape).throw_if_refused();
    call.prepare_s += total.prepare_s;
    call.stage_s += total.stage_s;
    call.verify_s += total.verify_s;
    call.vote_s += total.vote_s;
    call.commit_s += total.commit_s;
    call.egress_bytes += total.egress_bytes;
    total = call;
  }
  return total;
}

UpdateResults Side::results(const Communicator& callers, const UpdateResult& mine) const {
  UpdateResults all;
  auto& sent = all.sent;
  sent.diff_s = sent.apply_s = 0;
  const auto by_rank = callers.all_gather_values(std::span<const UpdateResult>(&mine, 1), job_->deadline());
  const auto trainers = plan_->roster().trainers;  // the first of the callers
  for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
    const auto& one = by_rank[rank].front();
    sent.apply_s = std::max(sent.apply_s, one.apply_s);
    if (rank >= trainers) continue;
    all.trainers.push_back(one);
    all.egress_bytes += one.egress_bytes;
    all.staging_bytes = std::max(all.staging_bytes, one.staging_bytes);
    sent.shipped_bytes += one.shipped_bytes;
    sent.changed_elements += one.changed_elements;
    sent.diff_s = std::max(sent.diff_s, one.diff_s);
  }
  sent.payload = mine.payload == Payload::delta ? "delta" : "dense";  // all ranks have decided it together
  return all;
}

double Side::scrub(const Communicator& callers) const {
  double mine_s = 0;
  agree(callers, "scrub", job_->deadline(), [&] {
    if (!engine_) return;
    const Stopwatch watch;
    engine_->scrub();
    mine_s = watch.elapsed_s();
  });
  return 1e-9 * static_cast<double>(callers.max(static_cast<std::uint64_t>(1e9 * mine_s), job_->deadline()));
}

ReferenceCheck Side::check(const Reference& reference) const {
  ReferenceCheck result;
  const auto threads = threads_per_rank(job_->world(), job_->deadline());
  const auto ranks = static_cast<std::uint64_t>(job_->world().size());
  job_->agree_patiently("reference", plan_->model.size_bytes() * ranks, [&](const Pulse& pulse) {
    if (!engine_) return;
    const auto pin = engine_->store().pin();
    result = check_against_reference(*plan_, tp_rank(), pin.slot(), attentive(reference, pulse), threads);
  });
  return result;
}

void while_serving(const Job& job, Engine* engine, FunctionRef<void(const Communicator& callers)> body) {
  const bool caller = engine == nullptr || engine->group().replica().rank() == 0;
  const auto callers = job.world().split(caller ? 0 : -1, job.world().rank(), job.deadline());
  std::optional<Error> failure;
  try {
    if (caller) {
      body(callers);
    } else {
      engine->serve();
    }
  } catch (...) {
    failure = current_error();
  }
  // Engines here do nothing but receive, and trainers nothing but publish: who keeps the other waiting has stopped.
  if (failure && failure->code() == ExitCode::busy && failure->reach() == Error::Reach::local)
    failure = silence(std::max(failure->origin().rank, 0), "prepare");
  if (failure && failure->reach() == Error::Reach::lost) throw Error(*failure);
  if (caller && engine != nullptr) engine->shutdown();
  agree(job.world(), "serve", job.deadline(), [&] {
    if (failure) throw Error(*failure);
  });
}

}  // namespace weightcast
