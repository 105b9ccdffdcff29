#include "weightcast/job/readers.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "weightcast/core/text_width.hpp"
#include "weightcast/telemetry/statistics.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t idle_reads_each = 20, sample_rows = 10;
constexpr std::uint64_t versions_remembered = 16;

}  // namespace

Readers::Readers(Engine& engine, const Model& model, std::uint64_t count)
    : engine_(engine), model_(model), count_(count) {
  if (count == 0) return;
  served_ = engine.store().served().value_or(0);
  for (std::size_t i = 0; i < count; ++i) {
    threads_.emplace_back([this, i](const std::stop_token& stop) { read(stop, i); });
  }
  const auto limit = Deadline::after(1);
  for (Patience patience; !limit.passed() && idle_.calls() < idle_reads_each * count; patience.pause()) {
  }
}

void Readers::read(const std::stop_token& stop, std::size_t reader) {
  Stopwatch since_refusal;
  bool refused = false;
  for (std::size_t n = reader; !stop.stop_requested(); ++n) {
    const auto served = served_.load();
    const bool updating = updating_;
    Stopwatch watch;
    try {
      std::uint64_t version = 0;
      double waited_s = 0;
      if (n % 2 == 0) {
        const auto answer = engine_.probe();
        version = answer.version;
        waited_s = answer.waited_s;
        check({version, -1}, answer.digest);
      } else {
        const auto parameter = n / 2 % model_.parameters.size();
        const auto answer = engine_.get_weights_by_parameter_name(model_.parameters[parameter].info.name, sample_rows);
        version = answer.version;
        waited_s = answer.waited_s;
        check({version, static_cast<std::int64_t>(parameter)},
              digest_bytes(std::as_bytes(std::span(answer.values)), 0));
      }
      if (refused) waited_s = since_refusal.elapsed_s();
      refused = false;
      note(watch, waited_s, updating || updating_, version < served);
    } catch (const Error& error) {
      if (error.code() == ExitCode::busy) {  // one slot, and it is being overwritten
        if (!refused) since_refusal.lap();
        refused = true;
        Patience().pause();
        continue;
      }
      const std::scoped_lock lock(mutex_);
      failure_ = error;
      return;
    }
  }
}

void Readers::check(const Key& key, const Digest& digest) {
  const std::scoped_lock lock(mutex_);
  const auto [seen, fresh] = digests_.try_emplace(key, digest);
  if (!fresh && seen->second != digest) ++mixed_;
}

void Readers::note(const Stopwatch& watch, double waited_s, bool updating, bool stale) {
  (updating ? updating_times_ : idle_).note(watch);
  const std::scoped_lock lock(mutex_);
  longest_wait_s_ = std::max(longest_wait_s_, waited_s);
  ++reads_;
  if (stale) ++stale_;
}

void Readers::update_begins() {
  if (count_ == 0) return;
  updating_ = true;
  const std::scoped_lock lock(mutex_);
  longest_wait_s_ = 0;
}

void Readers::update_ended(const std::optional<UpdateResult>& result) {
  if (count_ == 0) return;
  updating_ = false;
  if (result && result->committed) {
    if (result->digest) check({result->version, -1}, *result->digest);
    served_ = result->version;
  }
  const std::scoped_lock lock(mutex_);
  pauses_s_.push_back(longest_wait_s_);
  const auto keep = std::max(served_.load(), versions_remembered) - versions_remembered;
  digests_.erase(digests_.begin(), digests_.lower_bound({keep, -1}));
}

ReadersSeen Readers::stop() {
  if (count_ == 0) return {};
  for (auto& thread : threads_) thread.request_stop();
  for (auto& thread : threads_) thread.join();
  if (failure_) throw Error(*failure_);
  const auto idle_s = idle_.last(LayerTimes::kept), updating_s = updating_times_.last(LayerTimes::kept);
  ReadersSeen seen{.figures = {.reads = reads_,
                               .mixed = mixed_,
                               .stale = stale_,
                               .idle_p50_s = median(idle_s),
                               .idle_p99_s = p99(idle_s),
                               .updating_p50_s = median(updating_s),
                               .updating_p99_s = p99(updating_s),
                               .reads_per_s = static_cast<double>(reads_) / watch_.elapsed_s(),
                               .layers = {}},
                   .pauses_s = pauses_s_};
  const auto layers = engine_.read_layers();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto seconds = layers[i]->last(LayerTimes::kept);
    seen.figures.layers[i] = {layers[i]->calls(), median(seconds), p99(seconds)};
  }
  return seen;
}

ReportReaders gather_readers(const Communicator& world, const std::optional<ReadersSeen>& seen, std::uint64_t count,
                             std::vector<ReportUpdate>& updates, Deadline deadline) {
  std::vector<ReadersSeen::Figures> mine;
  std::vector<double> my_pauses;
  if (seen) mine = {seen->figures}, my_pauses = seen->pauses_s;
  ReportReaders all;
  all.count = count;
  const auto worst = [](double& a, double b) {
    if (!(a >= b)) a = b;  // the first is unknown
  };
  for (const auto& figures : world.all_gather_values(std::span<const ReadersSeen::Figures>(mine), deadline)) {
    if (figures.empty()) continue;
    const auto& one = figures.front();
    all.reads += one.reads;
    all.mixed += one.mixed;
    all.stale += one.stale;
    all.reads_per_s = (all.reads_per_s > 0 ? all.reads_per_s : 0) + one.reads_per_s;
    worst(all.idle_p50_s, one.idle_p50_s);
    worst(all.idle_p99_s, one.idle_p99_s);
    worst(all.updating_p50_s, one.updating_p50_s);
    worst(all.updating_p99_s, one.updating_p99_s);
    if (!all.layers.empty()) continue;
    for (std::size_t i = 0; i < request_layers.size(); ++i)
      all.layers.push_back({request_layers[i], one.layers[i].calls, one.layers[i].median_s, one.layers[i].p99_s});
  }
  std::vector<double> pauses(updates.size(), 0);
  for (const auto& theirs : world.all_gather_values(std::span<const double>(my_pauses), deadline)) {
    for (std::size_t i = 0; i < std::min(theirs.size(), pauses.size()); ++i) pauses[i] = std::max(pauses[i], theirs[i]);
  }
  for (std::size_t i = 0; i < updates.size(); ++i) updates[i].pause_s = pauses[i];
  all.pause_p99_s = p99(pauses);
  all.pause_max_s = max(pauses);
  return all;
}

std::string describe(const ReportReaders& r) {
  const auto line = fmt::format(
      "# {} readers per engine: {} reads, {:.0f} per second; p50 / p99 ms idle {:.3f} / {:.3f}, updating {:.3f} / "
      "{:.3f}; pause p99 {:.3f} ms, longest {:.3f} ms; {} mixed, {} stale",
      r.count, r.reads, r.reads_per_s, r.idle_p50_s * 1e3, r.idle_p99_s * 1e3, r.updating_p50_s * 1e3,
      r.updating_p99_s * 1e3, r.pause_p99_s * 1e3, r.pause_max_s * 1e3, r.mixed, r.stale);
  return fold(line, "#   ") + '\n';
}

void check_readers(const ReportReaders& readers) {
  if (readers.mixed == 0 && readers.stale == 0) return;
  Error error(ExitCode::mismatch,
              fmt::format("of {} reads, {} were of no single version and {} of an older version than was served",
                          readers.reads, readers.mixed, readers.stale),
              "do not use this engine; this is a defect of weightcast");
  error.set_reach(Error::Reach::everybody);
  throw error;
}

}  // namespace weightcast
