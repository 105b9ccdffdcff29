#include "weightcast/job/timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

namespace weightcast {

/// One call of a layer, as it travels between ranks.
struct Timeline::Span {
  enum class Kind : std::uint64_t { update, stage, read, scrub };
  Kind kind = Kind::update;
  std::array<char, 16> layer{};
  std::uint64_t call = 0;  ///< how many came before it
  TimedCall times;
};

namespace {

constexpr std::uint64_t most_layers = 17;  // of an engine rank: four for updates, reads and scrubs, and five stages
constexpr std::size_t barriers = 8;

/// Offsets of all ranks' clocks against that of rank 0. Collective.
std::vector<ClockOffset> compare_clocks(const Communicator& world, Deadline deadline) {
  std::vector<std::int64_t> mine;
  for (std::size_t i = 0; i < barriers; ++i) {
    mine.push_back(Stopwatch().begin_ns());
    world.barrier(deadline);
    mine.push_back(Stopwatch().begin_ns());
  }
  const auto all = world.all_gather_values(std::span<const std::int64_t>(mine), deadline);
  std::vector<ClockOffset> offsets;
  for (const auto& theirs : all) offsets.push_back(offset_between(all.front(), theirs));
  return offsets;
}

}  // namespace

ClockOffset offset_between(std::span<const std::int64_t> first, std::span<const std::int64_t> other) {
  WEIGHTCAST_EXPECTS(first.size() == other.size());
  ClockOffset offset{std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()};
  for (std::size_t i = 0; i + 1 < first.size(); i += 2) {
    offset.low_ns = std::max(offset.low_ns, other[i] - first[i + 1]);
    offset.high_ns = std::min(offset.high_ns, other[i + 1] - first[i]);
  }
  return offset;
}

void Timeline::record(const Job& job, const Side& side, const std::vector<ReportRank>& ranks, Granularity granularity,
                      FunctionRef<void()> updates) {
  if (job.world().max(wanted_ ? 1 : 0, job.deadline()) == 0) return updates();
  const auto before = compare_clocks(job.world(), job.deadline());
  {
    const std::scoped_lock lock(mutex_);
    side_ = &side;
    ranks_ = ranks;
    rank_ = job.world().rank();
    granularity_ = granularity;
  }
  try {
    updates();
  } catch (const Error& error) {
    if (error.reach() == Error::Reach::everybody) gather(job, before);
    throw;
  }
  gather(job, before);
}

std::vector<Timeline::Span> Timeline::own() const {
  const auto most = std::clamp<std::uint64_t>(most_spans / (ranks_.size() * most_layers), 1, LayerTimes::kept);
  std::vector<Span> spans;
  const auto take = [&](Span::Kind kind, const auto& layers) {
    for (const auto* layer : layers) {
      const auto last = layer->last_calls(most);
      Span span{.kind = kind, .call = last.calls - last.kept.size(), .times = {}};
      layer->layer().copy(span.layer.data(), span.layer.size() - 1);
      for (const auto& times : last.kept) {
        span.times = times;
        spans.push_back(span);
        ++span.call;
      }
    }
  };
  std::vector<const LayerTimes*> stages;
  const auto* const engine = side_->engine();
  for (const auto& stage : (engine ? engine->stages() : side_->publishing()->stages).times()) stages.push_back(&stage);
  if (engine == nullptr) take(Span::Kind::update, std::array{&side_->publishing()->times});
  if (engine != nullptr) take(Span::Kind::update, engine->layers());
  take(Span::Kind::stage, stages);
  if (engine != nullptr) take(Span::Kind::read, engine->read_layers());
  if (engine != nullptr) take(Span::Kind::scrub, engine->scrub_layers());
  return spans;
}

TraceRank Timeline::show(int rank, std::span<const Span> spans, const ClockOffset& offset) const {
  const auto& plan = side_->plan();
  const auto roster = plan.roster();
  const auto& it = ranks_.at(static_cast<std::size_t>(rank));
  const auto place =
      roster.trainer(rank) ? "" : fmt::format(", replica {}, tp {}", roster.replica(rank), roster.tp_rank(rank));
  const auto gpu = it.gpu.empty() ? "" : ", GPU " + it.gpu;
  TraceRank shown{.rank = rank,
                  .name = fmt::format("rank {}: {}{} ({}{})", rank, it.role, place, it.host, gpu),
                  .clock_error_ns = offset.error_ns()};
  const auto tensors = plan.model.tensors();
  const auto calls_per_update = granularity_ == Granularity::model ? 1 : tensors.size();
  std::uint64_t proven = 0;  // calls that came through all stages: one after them has failed
  for (const auto& span : spans) proven = std::max(proven, span.kind == Span::Kind::stage ? span.call + 1 : 0);
  for (const auto& span : spans) {
    const std::string layer = span.layer.data();
    const auto update = span.call / calls_per_update + 1;
    TraceSpan event{.name = layer,
                    .begin_ns = span.times.begin_ns - offset.estimate_ns() - begun_.begin_ns(),
                    .duration_ns = span.times.duration_ns,
                    .number = span.call + 1};
    TraceTrack track{.name = layer, .counted = "update", .dropped = span.call};
    switch (span.kind) {
      case Span::Kind::update:
        event.name = calls_per_update == 1 ? fmt::format("update {}", update)
                                           : plan.model.parameters[tensors[span.call % calls_per_update]].info.name;
        event.number = update;
        event.failed = span.call >= proven;
        break;
      case Span::Kind::stage:
        track.name = "stages";
        event.number = update;
        break;
      case Span::Kind::read:
        track.name = "reads: " + layer;
        track.counted = event.name = "read";
        break;
      case Span::Kind::scrub:
        track.name = "scrubs: " + layer;
        track.counted = event.name = "scrub";
        break;
    }
    if (shown.tracks.empty() || shown.tracks.back().name != track.name) shown.tracks.push_back(track);
    shown.tracks.back().spans.push_back(std::move(event));
  }
  return shown;
}

void Timeline::gather(const Job& job, std::span<const ClockOffset> before) {
  std::vector<ClockOffset> after;
  std::vector<std::vector<Span>> all;
  agree(job.world(), "trace", job.deadline(), [&](Deadline work) {
    after = compare_clocks(job.world(), work);
    all = job.world().all_gather_values(std::span<const Span>(own()), work);
  });
  const std::scoped_lock lock(mutex_);
  for (std::size_t r = 0; job.first() && r < all.size(); ++r) {
    ClockOffset offset{std::min(before[r].low_ns, after[r].low_ns), std::max(before[r].high_ns, after[r].high_ns)};
    // Ranks of a host have one clock. Two hosts of one name have not, and these bounds know it.
    if (ranks_[r].host == ranks_[0].host && offset.low_ns <= 0 && offset.high_ns >= 0) offset = {};
    gathered_.push_back(show(static_cast<int>(r), all[r], offset));
  }
}

std::string Timeline::to_json() const {
  const std::scoped_lock lock(mutex_);
  if (!gathered_.empty() || side_ == nullptr) return to_trace_json(gathered_);
  return to_trace_json({show(rank_, own(), {})});
}

}  // namespace weightcast
