#include "weightcast/engine/scheduler.hpp"

#include <mutex>
#include <utility>

namespace weightcast {

void Scheduler::expect_no_group(std::string_view verb) const {
  if (phase_ != Phase::serving) return;
  throw Error(ExitCode::config, fmt::format("{} after init_parameter_update_group()", verb),
              "this engine is in an update group: publish to it, or shutdown() first");
}

void Scheduler::join(std::unique_ptr<UpdateGroup> group, Driver driver) {
  expect_no_group("init_parameter_update_group()");
  worker_->connect(*group, driver);
  driver_ = driver;
  group_ = std::move(group);
  open_version_ = any_version;
  phase_ = Phase::serving;
}

UpdateGroup& Scheduler::group() const {
  if (!group_) throw Error(ExitCode::config, "there is no update group yet", "call init_parameter_update_group first");
  return *group_;
}

void Scheduler::expect_serving(std::string_view verb) const {
  const auto phase = phase_.load();
  if (phase == Phase::alone) {
    throw Error(ExitCode::config, fmt::format("{} before init_parameter_update_group()", verb),
                "call init_parameter_update_group first, on all ranks");
  }
  if (phase == Phase::ended)
    throw Error(ExitCode::config, fmt::format("{} after shutdown()", verb), "form an update group again");
  if (tp_rank_ != 0 && driver_ == Driver::first_rank) {
    throw Error(ExitCode::config, fmt::format("{} on tp rank {}", verb, tp_rank_),
                "tp rank 0 takes the requests of a replica; the other ranks serve()");
  }
}

std::optional<UpdateResult> Scheduler::update(std::string_view verb, std::uint64_t version, UpdateWait wait,
                                              bool empty_cache, CheckClaim check) {
  return times.timed([&] {
    const std::shared_lock lock(under_way_);
    expect_serving(verb);
    auto ticket = admission_.enter(version == any_version ? open_version_.load() : version);
    try {
      const auto result = worker_->update(wait, empty_cache, [&](const UpdateClaim& claim) {
        ticket.learn(claim.version);
        if (version != any_version && claim.version != version)
          fail(ExitCode::config, "version {} was asked for, but the trainer publishes {}", version, claim.version);
        if (check) check(claim);
      });
      open_version_ = !result || result->committed ? any_version : result->version;
      return result;
    } catch (...) {
      open_version_ = any_version;
      throw;
    }
  });
}

WeightRows Scheduler::rows(std::size_t parameter, std::uint64_t rows) {
  return read_times.timed([&] {
    const std::shared_lock lock(under_way_);
    expect_serving("get_weights_by_parameter_name()");
    return worker_->rows(parameter, rows);
  });
}

Probe Scheduler::probe(std::span<const std::size_t> parameters) {
  return read_times.timed([&] {
    const std::shared_lock lock(under_way_);
    expect_serving("probe()");
    return worker_->probe(parameters);
  });
}

Scrub Scheduler::scrub() {
  return scrub_times.timed([&] {
    const std::shared_lock lock(under_way_);
    expect_serving("scrub()");
    return worker_->scrub();
  });
}

void Scheduler::shutdown() {
  expect_serving("shutdown()");
  if (phase_.exchange(Phase::ended) == Phase::ended) expect_serving("shutdown()");  // two at once
  const std::unique_lock lock(under_way_);
  if (driver_ == Driver::first_rank) worker_->release();
}

void Scheduler::serve() {
  const auto phase = phase_.load();
  if (tp_rank_ == 0)
    throw Error(ExitCode::config, "serve() on tp rank 0",
                "this rank takes the requests: call its verbs, then shutdown()");
  if (phase != Phase::serving) {
    throw Error(ExitCode::config,
                phase == Phase::alone ? "serve() before init_parameter_update_group()" : "serve() after shutdown()",
                "form an update group first");
  }
  worker_->serve();
  phase_ = Phase::ended;
}

}  // namespace weightcast
