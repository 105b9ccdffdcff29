#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "commands/plain_copies.hpp"
#include "commands/start_job.hpp"
#include "commands/training_steps.hpp"
#include "options/bench_options.hpp"
#include "output/bench_table.hpp"
#include "output/progress.hpp"
#include "output/versions.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/job/job.hpp"
#include "weightcast/job/layer_study.hpp"
#include "weightcast/job/placement.hpp"
#include "weightcast/job/readers.hpp"
#include "weightcast/job/side.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/telemetry/statistics.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/trainer/quantized_source.hpp"

namespace weightcast {
namespace {

/// What a row of the table varies.
struct Combination {
  TransportChoice transport;
  Method method;
  Granularity granularity;
  VerifyChoice verify;
  BenchDelta delta;
};

TransferPlan plan_of(const BenchOptions& options, const Roster& roster, const Model& unquantized) {
  const auto model = build_model(unquantized.config, format_of(options, roster.tp));
  return make_plan(model, roster.tp, roster.dp, make_layout(options.source_layout, model, roster.trainers));
}

constexpr std::size_t published_versions = 2;

/// What is wrong with the second model of a list is better known before the first has been timed.
void expect_all(const BenchOptions& options, const Job& job, const Roster& roster, Placement placement) {
  if (options.models.size() == 1) return;
  for (const auto& model : options.models) {
    TransferPlan plan;
    agree(job.world(), "load", job.deadline(),
          [&] { plan = plan_of(options, roster, build_model(load_model_config(model))); });
    Side(job, plan, placement, options.commit).expect_room(published_versions);
  }
}

/// Everything that the rows of one model share: its weights, loaded once.
class ModelBench {
 public:
  ModelBench(const BenchOptions& options, Job& job, std::string model_name, const Roster& roster, Placement placement,
             MemoryKind memory)
      : options_(options),
        job_(job),
        model_name_(std::move(model_name)),
        roster_(roster),
        placement_(placement),
        memory_(memory),
        side_(job, plan_, placement, options.commit) {
    agree(job.world(), "load", job.deadline(), [&] {
      unquantized_ = build_model(load_model_config(model_name_));
      plan_ = plan_of(options, roster, unquantized_);
      sources_.push_back(options.changed ? make_synthetic_source(unquantized_, 1, *options.changed)
                                         : make_synthetic_source(unquantized_, 2));
      sources_.push_back(make_synthetic_source(unquantized_, 1));
      if (options.quantization != Quantization::none) {
        for (auto& source : sources_) source = quantized_source(plan_.model, unquantized_, std::move(source));
      }
    });
    {
      Progress progress("making weights", plan_.held_bytes(0) * sources_.size());
      side_.load({sources_[0].get(), sources_[1].get()}, *sources_[1],
                 [&](std::uint64_t bytes) { progress.add(bytes); });
    }
    if (std::ranges::find(options.deltas, BenchDelta::automatic) == options.deltas.end()) return;
    agree(job.world(), "load", job.deadline(), [&] {
      if (side_.trainer() != nullptr)
        steps_.emplace(plan_, static_cast<std::size_t>(job.world().rank()), *side_.trainer());
    });
  }

  ReportRow run(const Combination& what) {
    const auto update_count = 2 + options_.warmup + options_.repeat;  // the cold one, and one untimed
    progress_.emplace(fmt::format("timing {} by {}, {}", model_name_, name_of(what.transport), name_of(what.method)),
                      update_count * plan_.model.size_bytes());
    side_.form_group({.transport = std::string(name_of(what.transport)),
                      .method = what.method,
                      .proof = what.verify == VerifyChoice::all ? Proof::digests : Proof::none,
                      .timeout_s = options_.timeout_s,
                      .delta_limit = limit_for(what.delta, options_.delta_limit),
                      .warm_up = options_.group_warmup},
                     version_);
    auto* const engine = side_.engine();
    const auto size_bytes = plan_.model.size_bytes();
    ReportRow row{.model = model_name_,
                  .model_bytes = size_bytes,
                  .device = std::string(name(memory_)),
                  .transport = std::string(side_.group().transport()),
                  .method = std::string(name_of(what.method)),
                  .granularity = std::string(name_of(what.granularity)),
                  .trainers = roster_.trainers,
                  .tp = roster_.tp,
                  .dp = roster_.dp,
                  .source_layout = std::string(name_of(options_.source_layout)),
                  .verify = std::string(name_of(what.verify)),
                  .trainer_egress_bytes = {},
                  .commit = std::string(name_of(options_.commit)),
                  .delta = std::string(name_of(what.delta)),
                  .changed = options_.changed.value_or(1),
                  .sent = {},
                  .group_warmup = options_.group_warmup,
                  .path = {},
                  .readers = {}};
    auto plain = options_.ceiling ? plain_copies(job_, side_, placement_) : std::vector<double>();
    LayerStudy study(what.granularity == Granularity::model ? 1 : plan_.model.tensor_count());
    const auto first = version_, served = source_index_;
    std::vector<double> seconds, ship_s, diff_s, apply_s;
    std::optional<ReadersSeen> reads;
    while_serving(job_, engine, [&](const Communicator& callers) {
      std::optional<Readers> readers;
      if (engine != nullptr) readers.emplace(*engine, plan_.model, options_.readers);
      row.cold_s = update(what, row, callers, readers).total_s();
      if (engine != nullptr) study.note_cold(*engine);
      for (std::uint64_t i = 0; i < options_.warmup; ++i) update(what, row, callers, readers);
      for (std::uint64_t i = 0; i < options_.repeat; ++i) {
        // Two weights over two slots: each slot would always get what it held before. So the weights that are served
        // are sent once more, untimed, before the last update: after that #wrong sees whether bytes still move.
        if (i + 1 == options_.repeat) update(what, row, callers, readers, Which::same);
        const auto mine = update(what, row, callers, readers);
        seconds.push_back(mine.total_s());
        ship_s.push_back(mine.stage_s);
        diff_s.push_back(row.sent.diff_s);
        apply_s.push_back(row.sent.apply_s);
      }
      if (engine != nullptr) study.note_warm(*engine, options_.repeat + 1);
      agree(callers, "readers", job_.deadline(), [&] {
        if (readers) reads = readers->stop();
      });
    });
    // On ranks that served, too.
    version_ = first + 2 + options_.warmup + options_.repeat;
    source_index_ = (1 + options_.warmup + options_.repeat) % 2 == 0 ? served : 1 - served;
    if (what.granularity == Granularity::parameter) row.path = study.gather(job_.world(), roster_, job_.deadline());
    if (options_.readers > 0) {
      std::vector<ReportUpdate> updates(version_ - first);
      row.readers = gather_readers(job_.world(), reads, options_.readers, updates, job_.deadline());
      check_readers(*row.readers);
    }
    row.median_s = median(seconds);
    row.min_s = min(seconds);
    row.max_s = max(seconds);
    row.p99_s = p99(seconds);
    row.ship_s = median(ship_s);
    row.sent.diff_s = median(diff_s);
    row.sent.apply_s = median(apply_s);
    row.model_GBps = static_cast<double>(size_bytes) / row.median_s / 1e9;
    if (options_.ceiling) {  // taken before and after, because machines drift
      const auto after = plain_copies(job_, side_, placement_);
      plain.insert(plain.end(), after.begin(), after.end());
      row.ceiling_GBps = static_cast<double>(size_bytes) / median(plain) / 1e9;
      row.ratio_to_ceiling = row.model_GBps / row.ceiling_GBps;
    }
    row.staging_bytes = job_.world().max(row.staging_bytes, job_.deadline());
    row.wrong = wrong();
    progress_.reset();
    return row;
  }

 private:
  enum class Which { other, same };
  /// One update, of the other weights, so that it changes every parameter, or of the same again. As this rank saw it.
  UpdateResult update(const Combination& what, ReportRow& row, const Communicator& callers,
                      std::optional<Readers>& readers, Which which = Which::other) {
    job_.stop_if_asked(callers, version_ - 1);
    ++version_;
    if (which == Which::other) source_index_ = 1 - source_index_;
    const bool filled = what.delta == BenchDelta::automatic && steps_;
    agree(callers, "fill", job_.deadline(), [&](Deadline work) {
      if (filled) steps_->step(source_index_, work);
    });
    if (readers) readers->update_begins();
    const auto result = side_.update(filled ? steps_->source_index() : source_index_, version_, what.granularity);
    if (readers) readers->update_ended(result);
    progress_->add(plan_.model.size_bytes());
    const auto all = side_.results(callers, result);
    row.trainer_egress_bytes.clear();
    for (const auto& one : all.trainers) row.trainer_egress_bytes.push_back(one.egress_bytes);
    row.egress_bytes = all.egress_bytes;
    row.staging_bytes = result.staging_bytes;
    row.sent = all.sent;
    return result;
  }

  /// Parameters that differ from their source on any rank, summed over the ranks.
  std::uint64_t wrong() const {
    return job_.world().sum(side_.check(reference_of(*sources_[source_index_])).mismatched.size(), job_.deadline());
  }

  const BenchOptions& options_;
  Job& job_;
  std::string model_name_;
  Roster roster_;
  std::uint64_t version_ = 1;
  std::size_t source_index_ = 1;  // of what is served
  Placement placement_;
  MemoryKind memory_;  // of the engines
  Model unquantized_;
  TransferPlan plan_;
  std::vector<std::unique_ptr<WeightSource>> sources_;  // the trainer's source regions 0 and 1; engines start with 1
  Side side_;
  std::optional<Progress> progress_;    // of the combination that is timed
  std::optional<TrainingSteps> steps_;  // of a trainer rank, for BenchDelta::automatic
};

void run(const BenchOptions& options, Job& job, Report& report, const EarlyName& json) {
  expect_same(job.world(), describe(options), job.deadline());
  Roster roster;
  agree(job.world(), "start", job.deadline(), [&] {
    roster = form_roster(options.tp, options.dp, job.world().size(), options.trainers);
    if (job.first()) json.probe();
  });
  const auto placement = choose_placement(job.world(), roster, options, job.deadline());
  report.ranks = gather_ranks(job.world(), roster, placement, job.deadline());
  const auto memory = memory_of_engines(job.world(), roster, placement, job.deadline());
  expect_all(options, job, roster, placement);
  if (job.first()) print_bench_header(options, roster, memory);
  for (const auto& model : options.models) {
    ModelBench bench(options, job, model, roster, placement, memory);
    for (const auto granularity : options.granularities) {
      for (const auto method : options.methods) {
        for (const auto transport : options.transports) {
          if (transport == TransportChoice::direct && method == Method::broadcast)
            continue;  // engines pull what they need
          for (const auto verify : options.verifies) {
            for (const auto delta : options.deltas) {
              report.rows.push_back(bench.run({transport, method, granularity, verify, delta}));
              if (job.first()) print_bench_row(report.rows.back(), options);
            }
          }
        }
      }
    }
  }
  std::uint64_t wrong = 0;
  for (const auto& row : report.rows) wrong += row.wrong;
  if (wrong == 0) return;
  Error error(ExitCode::mismatch, fmt::format("{} parameters arrived wrong: see the column #wrong", wrong));
  error.set_reach(Error::Reach::everybody);
  throw error;
}

}  // namespace

int run_bench(const BenchOptions& options) {
  const EarlyName json(options.json);
  Report report;
  report.command = "bench";
  report.versions = versions();
  const Report nothing_yet = report;
  const auto finish = [&](const std::optional<Error>& error) {
    if (error) {
      report.error = report_error(*error);
      report.exit_code = error->code();
    }
    if (json) write_report(json.get(), report, reader_deadline(options.timeout_s));
  };
  Job job = start_job(
      options.timeout_s, finish, [&](const Error& error) { write_late_report(json, nothing_yet, error); },
      options.trainers);
  return job.run([&] { run(options, job, report, json); });
}

}  // namespace weightcast
