#include "weightcast/update/update_group.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "weightcast/comm/mpi_library.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/update/group_state.hpp"

namespace weightcast {
namespace {

constexpr double goodbye_s = 5;

Manifest make_manifest(const TransferPlan& plan, const GroupOptions& options) {
  Manifest manifest;
  manifest.plan_digest = plan.digest;
  for (const auto& rule : plan.model.parameters) manifest.parameters.push_back(rule.info);
  manifest.settings = {{"tp", std::to_string(options.tp)},
                       {"ep", std::to_string(plan.model.format.ep)},
                       {"quantize", std::string(name(plan.model.format.quantization))},
                       {"dp", std::to_string(options.dp)},
                       {"trainers", std::to_string(plan.sources.ranks.size())},
                       {"transport", options.transport},
                       {"method", std::string(name(options.method))},
                       {"proof", options.proof == Proof::digests ? "digests" : "none"},
                       {"scrub", options.scrub ? "on" : "off"},
                       {"delta_limit", fmt::format("{}", options.delta_limit)},
                       {"mpi", mpi_library()}};
  return manifest;
}

/// Every rank holds the trainer's manifest against its own.
void compare_manifests(const Communicator& group, const Manifest& mine, Deadline deadline) {
  agree(group, "prepare", deadline, [&](Deadline work) {
    std::string text = group.rank() == 0 ? to_json(mine) : std::string();
    std::uint64_t size_bytes = text.size();
    group.broadcast(std::as_writable_bytes(std::span(&size_bytes, 1)), 0, work);
    if (size_bytes > 256 * 1024 * 1024) fail(ExitCode::bad_data, "the trainer's manifest has {} bytes", size_bytes);
    text.resize(size_bytes);
    group.broadcast(std::as_writable_bytes(std::span(text)), 0, work);
    const auto difference = first_difference(mine, parse_manifest(text));
    if (!difference.empty()) {
      throw Error(ExitCode::config, "trainer and engine do not agree: " + difference,
                  "start all ranks with the same model and options");
    }
  });
}

}  // namespace

UpdateGroup::UpdateGroup(const Communicator& parent, const TransferPlan& plan, const GroupOptions& options,
                         std::vector<const Buffer*> sources, ParameterStore* store)
    : state_(std::make_unique<State>()) {
  Stopwatch watch;
  auto& s = *state_;
  s.plan = &plan;
  s.options = options;
  const Roster roster{plan.sources.ranks.size(), options.tp, options.dp};
  s.group = parent.duplicate(s.deadline());
  agree(s.group, "prepare", s.deadline(), [&] { roster.check_world(s.group.size()); });
  const int rank = s.group.rank();
  s.replica = s.group.split(roster.trainer(rank) ? -1 : static_cast<int>(roster.replica(rank)), rank, s.deadline());
  s.trainers = s.group.split(roster.trainer(rank) ? 0 : -1, rank, s.deadline());
  s.peers = Peers::meet(s.group, roster, options.placement, s.deadline());
  compare_manifests(s.group, make_manifest(plan, options), s.deadline());
  agree(s.group, "prepare", s.deadline(), [&](Deadline work) { s.offers.emplace(s.group, work); });

  agree(s.group, "attach", s.deadline(), [&] {
    if (options.delta_limit > 0) s.deltas = make_delta_plan(plan, options.delta_limit);
    if (s.deltas && !s.deltas->possible()) s.deltas.reset();
    const auto* const deltas = s.deltas ? &*s.deltas : nullptr;
    if (!s.peers.trainer()) {
      s.end = make_engine_end(plan, deltas, options, s.peers.tp_rank(), *store);
      return;
    }
    const auto& places = s.peers.places;
    const bool shared = std::all_of(places.begin() + static_cast<std::ptrdiff_t>(roster.trainers), places.end(),
                                    [&](const Place& place) { return same_gpu(place, s.peers.place(rank)); });
    const bool crowded = options.placement.kind == MemoryKind::cuda ? shared : s.group.crowded();
    s.end = make_trainer_end(plan, deltas, options, s.trainers, std::move(sources), crowded);
  });
  s.dense = {{}, &plan, &s.end->endpoints(), options.method};
  s.choose_transport();
  if (s.deltas) {
    s.delta = {{}, &s.deltas->movement, &s.end->delta_endpoints()};
    s.attach(s.delta, s.dense.transport->name());
  }
  s.arrived.resize(plan.model.parameters.size());
  s.sent.resize(options.tp * plan.model.parameters.size() + 1);
  s.init_s = watch.lap();
  s.warm_up();
  agree(s.group, "warm-up", s.deadline(), [&](Deadline work) { s.end->settle(work); });
  s.warmup_s = watch.lap();
}

UpdateGroup::~UpdateGroup() {
  auto& s = *state_;
  const bool whole = !s.dense.failed && !s.delta.failed && !s.lost && std::uncaught_exceptions() == 0;
  s.dense.transport.reset();
  s.delta.transport.reset();
  try {
    if (s.group.rank() == 0) {
      s.offers->say_farewell();
    } else {
      s.offers->leave(Deadline::after(whole ? goodbye_s : 0));
    }
    // Whoever has mapped this rank's memory lets go of it before it is freed.
    const StageClock::Note note(s.group.stage_clock(), "leaving the group", Deadline::after(goodbye_s));
    if (whole && (s.group.rank() == 0 || s.offers->closed())) s.group.barrier(Deadline::after(goodbye_s));
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): somebody left without a word, and holds nothing any more
  }
}

bool UpdateGroup::scrub(const ParameterStore::Pin& pin, Deadline deadline) {
  const auto& s = *state_;
  if (s.peers.trainer()) throw Error(ExitCode::config, "scrub() on a trainer rank", "only engine ranks have slots");
  if (!s.options.scrub)
    throw Error(ExitCode::config, "scrub() in a group that was not formed for it", "form it with GroupOptions::scrub");
  return s.end->scrub(pin, deadline);
}

void UpdateGroup::State::attach(Mover& mover, std::string_view name) {
  mover.transport = options.make_transport(name, mover.method, peers.memory());
  agree(group, "attach", deadline(),
        [&](Deadline work) { mover.transport->attach(peers, *mover.plan, *mover.endpoints, work); });
}

Transport& UpdateGroup::State::ready(Mover& mover) {
  if (mover.failed) {
    retired.push_back(std::move(mover.transport));
    attach(mover, retired.back()->name());
    mover.failed = false;
  }
  return *mover.transport;
}

void UpdateGroup::State::choose_transport() {
  const bool automatic = options.transport == "auto";
  std::vector<std::string> candidates = {options.transport};
  if (automatic) {
    const auto names = transport_names();
    candidates.assign(names.begin(), names.end());
  }
  std::string refusals;
  for (const auto& candidate : candidates) {
    auto [surveyed, reasons] = survey_transport(candidate, options.method, peers, deadline(), options.make_transport);
    if (reasons.empty()) {
      dense.transport = std::move(surveyed);
      try {
        agree(group, "attach", deadline(),
              [&](Deadline work) { dense.transport->attach(peers, *plan, end->endpoints(), work); });
        transport_notes = refusals;
        return;
      } catch (const Error& error) {
        if (!automatic || error.reach() != Error::Reach::everybody || error.code() == ExitCode::deadline) throw;
        reasons.push_back(fmt::format("rank {}: {}", error.origin().rank, error.what()));
      }
    }
    refusals += fmt::format("{}{}: {}", refusals.empty() ? "" : "; ", candidate, fmt::join(reasons, ", "));
  }
  agree(group, "attach", deadline(), [&] {
    throw Error(ExitCode::config, fmt::format("no transport can be used. {}", refusals),
                "choose another with --transport, or --transport auto");
  });
}

void UpdateGroup::State::warm_up() {
  constexpr std::size_t few_parameters = 16;  // enough to open every connection
  const bool possible = options.warm_up && end->can_rehearse();
  // The first copy over a fresh mapping of another GPU's memory takes a fourth longer: there, all of every source.
  const bool whole = peers.memory() == MemoryKind::cuda;
  const auto parameters = plan->model.parameters.size(),
             count = whole ? parameters : std::min(parameters, few_parameters);
  const auto sources = whole ? group.max(end->endpoints().sources.size(), deadline()) : 1;
  const auto runs = group.max(possible ? 0 : 1, deadline()) == 0 ? sources : 0;
  for (std::size_t source_index = 0; source_index < runs; ++source_index)
    agree(group, "warm-up", deadline(),
          [&](Deadline work) { end->rehearse(*dense.transport, source_index, count, work); });
  if (deltas && options.warm_up) {
    const Range parts{0, whole ? deltas->movement.model.parameters.size() : 1};
    agree(group, "warm-up", deadline(), [&](Deadline work) { delta.transport->run({0, 0, parts}, work); });
  }
  group.barrier(deadline());
}

const Communicator& UpdateGroup::group() const noexcept {
  return state_->group;
}
const Communicator& UpdateGroup::replica() const noexcept {
  return state_->replica;
}
const TransferPlan& UpdateGroup::plan() const noexcept {
  return *state_->plan;
}
const GroupOptions& UpdateGroup::options() const noexcept {
  return state_->options;
}
std::string_view UpdateGroup::transport() const noexcept {
  return state_->dense.transport->name();
}
const std::string& UpdateGroup::transport_notes() const noexcept {
  return state_->transport_notes;
}
std::uint64_t UpdateGroup::delta_bytes() const noexcept {
  if (!state_->deltas) return 0;
  const auto& [sources, sinks, handles] = state_->end->delta_endpoints();
  std::uint64_t bytes = 0;
  for (const auto* source : sources) bytes += source->region().size_bytes;
  for (const auto& sink : sinks) bytes += sink.size_bytes;
  return bytes;
}
double UpdateGroup::init_s() const noexcept {
  return state_->init_s;
}
double UpdateGroup::warmup_s() const noexcept {
  return state_->warmup_s;
}

}  // namespace weightcast
