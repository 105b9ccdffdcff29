#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "commands/named_weights.hpp"
#include "commands/preflight.hpp"
#include "commands/replica_digests.hpp"
#include "commands/sample.hpp"
#include "commands/start_job.hpp"
#include "options/update_options.hpp"
#include "output/progress.hpp"
#include "output/update_table.hpp"
#include "output/versions.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/job/job.hpp"
#include "weightcast/job/layer_study.hpp"
#include "weightcast/job/placement.hpp"
#include "weightcast/job/readers.hpp"
#include "weightcast/job/side.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/job/timeline.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/trainer/quantized_source.hpp"

namespace weightcast {
namespace {

struct Outputs {
  EarlyName json, trace, snapshot;
};

/// One job: the values that its stages share, in the order in which they come to be.
class Update {
 public:
  Update(const UpdateOptions& options, const Outputs& outputs, Job& job, Report& report, Timeline& timeline)
      : options_(options), outputs_(outputs), job_(job), report_(report), timeline_(timeline) {}

  void run() {
    auto& phases = report_.phases;
    join();
    watch_.lap();
    timed(phases.load_s, [&] { load(); });
    timed(phases.group_s, [&] { form_group(); });
    timed(phases.updates_s, [&] {
      timeline_.record(job_, *side_, report_.ranks, options_.granularity, [&] {
        while_serving(job_, side_->engine(), [&](const Communicator& callers) { serve_and_update(callers); });
      });
      show_load();
    });
    if (options_.verify == VerifyChoice::all) timed(phases.check_s, [&] { check_reference(); });
    if (!options_.snapshot.empty()) timed(phases.snapshot_s, [&] { snapshot(); });
    if (job_.first()) print_update_summary(report_, options_.verify);
  }

 private:
  /// Notes how long a phase took, also one that fails.
  void timed(double& seconds, FunctionRef<void()> phase) {
    const auto note = [&] {
      seconds = watch_.lap();
      report_.phases.total_s = begun_.elapsed_s();
    };
    try {
      phase();
    } catch (...) {
      note();
      throw;
    }
    note();
  }

  void join() {
    const Progress progress("placing ranks and devices");
    expect_same(job_.world(), describe(options_), job_.deadline());
    agree(job_.world(), "start", job_.deadline(), [&] {
      roster_ = form_roster(options_.tp, options_.dp, job_.world().size(), options_.trainers);
      if (job_.first()) {
        outputs_.json.probe();
        outputs_.trace.probe();
      }
    });
    placement_ = choose_placement(job_.world(), roster_, options_, job_.deadline());
    report_.ranks = gather_ranks(job_.world(), roster_, placement_, job_.deadline());
    report_.trainers = roster_.trainers;
    report_.tp = roster_.tp;
    report_.dp = roster_.dp;
    report_.source_layout = name_of(options_.source_layout);
    report_.device = name(memory_of_engines(job_.world(), roster_, placement_, job_.deadline()));
    report_.method = name_of(options_.method);
    report_.granularity = name_of(options_.granularity);
    report_.commit = name_of(options_.commit);
  }

  void load() {
    agree(job_.world(), "load", job_.deadline(), [&] {
      NamedWeights initial(options_.initial), target(options_.target);
      std::vector<std::string> notes;
      unquantized_ = build_model(config_of(initial, target, options_.model, notes));
      const auto model = build_model(unquantized_.config, format_of(options_, roster_.tp));
      plan_ = make_plan(model, roster_.tp, roster_.dp, make_layout(options_.source_layout, model, roster_.trainers));
      if (writes_snapshot()) probe_snapshot(outputs_.snapshot.get(), model);
      initial_ = std::move(initial).source(unquantized_, options_.ignore);
      target_ = std::move(target).source(unquantized_, options_.ignore);
      for (const auto* source : {initial_.get(), target_.get()}) {
        const auto more = source->notes();
        notes.insert(notes.end(), more.begin(), more.end());
      }
      report_.notes = std::move(notes);
    });
    check_claims(job_, unquantized_, {initial_.get(), target_.get()});
    if (options_.quantization != Quantization::none) {
      for (auto* source : {&initial_, &target_})
        *source = quantized_source(plan_.model, unquantized_, std::move(*source));
    }
    const auto& model = plan_.model;
    study_.emplace(options_.granularity == Granularity::model ? 1 : model.tensor_count());
    report_.model = {std::string(name(model.config.family)), model.tensor_count(), model.size_bytes()};
    std::vector<const WeightSource*> published = {target_.get()};
    if (options_.repeat > 1) published.push_back(initial_.get());
    side_.emplace(job_, plan_, placement_, options_.commit);
    Progress progress("loading weights", plan_.held_bytes(0) * published.size());
    side_->load(published, *initial_, [&](std::uint64_t bytes) { progress.add(bytes); });
  }

  void form_group() {
    Progress progress("forming the group");
    side_->form_group({.transport = std::string(name_of(options_.transport)),
                       .method = options_.method,
                       .proof = options_.verify == VerifyChoice::all ? Proof::digests : Proof::none,
                       .timeout_s = options_.timeout_s,
                       .delta_limit = limit_for(options_.delta, options_.delta_limit),
                       .scrub = scrubs()},
                      1);
    if (scrubs()) report_.scrubs.emplace();
    if (options_.scrub > 0 && !scrubs())
      report_.notes.push_back("nothing is scrubbed: only --verify all proves what is committed");
    const auto& group = side_->group();
    report_.transport = group.transport();
    const auto delta_bytes = job_.world().max(side_->delta_bytes(), job_.deadline());
    report_.group = {group.init_s(), group.warmup_s(), delta_bytes};
    progress.restart();
    if (job_.first())
      print_update_header(report_, options_, initial_->describe(), target_->describe(), group.transport_notes());
  }

  /// The weights that the last update brought.
  const WeightSource& last_source() const { return options_.repeat % 2 == 1 ? *target_ : *initial_; }

  /// On the trainer ranks and the first rank of each engine.
  void serve_and_update(const Communicator& callers) {
    if (options_.verify == VerifyChoice::sample) check_sample(callers, *initial_, "before");
    auto* const engine = side_->engine();
    std::optional<Readers> readers;
    if (engine != nullptr) readers.emplace(*engine, plan_.model, options_.readers);
    callers.barrier(job_.deadline());
    std::optional<Progress> progress(std::in_place, "updating");
    for (std::uint64_t i = 0; i < options_.repeat; ++i) {
      job_.stop_if_asked(callers, i);
      if (engine == nullptr) {
        publish(callers, i, *progress);
      } else {
        readers->update_begins();
        const auto result = side_->update(i % 2, i + 2, options_.granularity);
        readers->update_ended(result);
        if (i == 0) study_->note_cold(*engine);
        side_->results(callers, result);
      }
      if (scrubs() && (i + 1) % options_.scrub == 0) report_.scrubs->seconds.push_back(side_->scrub(callers));
    }
    progress.reset();
    if (engine != nullptr) study_->note_warm(*engine, options_.repeat - 1);
    agree(callers, "readers", job_.deadline(), [&] {
      if (readers) reads_ = readers->stop();
    });
    if (options_.verify == VerifyChoice::sample) check_sample(callers, last_source(), "after");
  }

  /// Where the time of the calls went, and what the readers saw, reach all ranks.
  void show_load() {
    if (job_.first()) print_update_median(report_, options_);
    report_.path = study_->gather(job_.world(), roster_, job_.deadline());
    if (job_.first() && options_.granularity == Granularity::parameter) print_path(report_.path);
    if (options_.readers == 0) return;
    report_.readers = gather_readers(job_.world(), reads_, options_.readers, report_.updates, job_.deadline());
    if (job_.first()) fmt::print("{}", describe(*report_.readers));
    check_readers(*report_.readers);
  }

  /// The row of an update that has ended, as one trainer rank saw it.
  ReportUpdate row_of(std::uint64_t index, const UpdateResult& result) const {
    return {.id = index + 1,
            .version = result.version,
            .result = result.no_op ? "unchanged" : "committed",
            .total_s = result.total_s(),
            .prepare_s = result.prepare_s,
            .stage_s = result.stage_s,
            .verify_s = result.verify_s,
            .vote_s = result.vote_s,
            .commit_s = result.commit_s,
            .pause_s = options_.commit == CommitMode::swap ? result.commit_s : result.total_s(),
            .egress_bytes = result.egress_bytes,
            .staging_bytes = result.staging_bytes,
            .trainer_egress_bytes = {},
            .sent = {}};
  }

  UpdateResult update_or_note_failure(std::uint64_t index) {
    ReportUpdate row{
        .id = index + 1, .version = index + 2, .result = "aborted", .trainer_egress_bytes = {}, .sent = {}};
    try {
      return side_->update(index % 2, row.version, options_.granularity);
    } catch (const Error& error) {
      const bool untouched = error.origin().stage == "prepare";
      if (options_.commit == CommitMode::in_place && !untouched) row.result = "dirty";
      report_.updates.push_back(row);
      throw;
    }
  }

  void publish(const Communicator& callers, std::uint64_t index, Progress& progress) {
    const auto result = update_or_note_failure(index);
    auto row = row_of(index, result);
    const auto all = side_->results(callers, result);
    for (const auto& one : all.trainers) row.trainer_egress_bytes.push_back(one.egress_bytes);
    row.egress_bytes = all.egress_bytes;
    row.staging_bytes = all.staging_bytes;
    row.sent = all.sent;
    if (result.digest) report_.verify.digest = result.digest->hex();
    report_.updates.push_back(row);
    progress.restart();
    if (job_.first()) print_update_row(report_, options_);
  }

  bool scrubs() const { return options_.scrub > 0 && options_.verify == VerifyChoice::all; }

  void check_sample(const Communicator& callers, const WeightSource& expected, const std::string& when) {
    agree(callers, "sample", job_.deadline(), [&] {
      if (job_.first() && when == "before") expect_samples_differ(plan_.model, *initial_, *target_, options_.truncate);
      if (side_->engine() != nullptr) check_samples(*side_->engine(), plan_.model, expected, options_.truncate, when);
    });
    const auto count = sample_parameters(plan_.model).size();
    if (job_.first()) print_sample(count, options_.truncate, expected, when);
    report_.verify = {"sample", count, 0, report_.verify.digest};
  }

  /// Every byte of every engine rank against the weights' own source.
  void check_reference() {
    const Progress progress("checking against the reference");
    const auto& model = plan_.model;
    const auto check = side_->check(reference_of(last_source()));
    std::vector<std::byte> wrong(model.parameters.size());
    for (const auto p : check.mismatched) wrong[p] = std::byte{1};
    const auto all = job_.world().gather(wrong, 0, job_.deadline());
    for (std::size_t i = 0; i < all.size(); ++i) wrong[i % wrong.size()] |= all[i];
    std::uint64_t mismatched = 0;
    for (const auto first : model.tensors()) {
      const auto tensor = std::span(wrong).subspan(first, model.tensor_end(first) - first);
      mismatched += std::ranges::find(tensor, std::byte{1}) != tensor.end() ? 1 : 0;
    }
    report_.verify = {"all", model.tensor_count(), mismatched, report_.verify.digest};
    agree(job_.world(), "reference", job_.deadline(), [&] {
      if (check.first)
        throw Error(ExitCode::mismatch, *check.first + " (compared with " + last_source().describe() + ")",
                    "do not use these weights");
    });
  }

  void snapshot() {
    const auto& model = plan_.model;
    job_.stop_if_asked(job_.world(), options_.repeat);
    if (job_.first()) fmt::print(stderr, "writing {}\n", printable(options_.snapshot));
    const Progress progress("writing " + options_.snapshot);
    job_.agree_patiently("snapshot", model.size_bytes(), [&](const Pulse&, Deadline deadline) {
      // One replica writes: they all hold the same.
      if (side_->engine() == nullptr || roster_.replica(job_.world().rank()) != 0) return;
      const auto pin = side_->engine()->store().pin();
      const auto& replica = side_->group().replica();
      const HostView slot(pin.slot());
      const SnapshotInfo info{pin.version().id,
                              digests_of_replica(replica, plan_, slot.bytes().data(), job_.deadline()),
                              {{"tp", std::to_string(roster_.tp)}, {"transport", report_.transport}}};
      constexpr std::string_view when = "while it wrote the snapshot";
      try {
        write_snapshot(options_.snapshot, replica, plan_, slot.bytes(), info, deadline,
                       writes_snapshot() ? std::optional(outputs_.snapshot.get()) : std::nullopt,
                       [&] { stop_if_asked(when); });
      } catch (const Error& error) {
        if (error.reach() == Error::Reach::everybody) stop_if_asked(when);  // which took its file away
        throw;
      }
    });
  }

  /// The first rank of the first engine makes the file, so it is the one that looks at its name.
  bool writes_snapshot() const {
    return !options_.snapshot.empty() && job_.world().rank() == roster_.engine_rank(0, 0);
  }

  const UpdateOptions& options_;
  const Outputs& outputs_;
  Job& job_;
  Report& report_;
  Timeline& timeline_;
  Stopwatch begun_, watch_;
  Roster roster_;
  Placement placement_;
  Model unquantized_;  // what the weights are before engines' format is made of them
  TransferPlan plan_;
  std::unique_ptr<WeightSource> initial_, target_;
  std::optional<Side> side_;
  std::optional<LayerStudy> study_;
  std::optional<ReadersSeen> reads_;  // on this rank
};

}  // namespace

int run_update(const UpdateOptions& options) {
  const Outputs outputs{EarlyName(options.json), EarlyName(options.trace),
                        EarlyName(options.snapshot, options.force ? Existing::replace : Existing::refuse)};
  Report report;
  Timeline timeline(!options.trace.empty());
  const auto finish = [&](const std::optional<Error>& error) {
    if (options.preflight) return;
    if (error) {
      report.error = report_error(*error);
      report.exit_code = error->code();
    }
    report.summary = summarize(report.updates, report.model.bytes);
    const auto deadline = reader_deadline(options.timeout_s);
    if (outputs.json) write_report(outputs.json.get(), report, deadline);
    if (outputs.trace) write_text_file(outputs.trace.get(), timeline.to_json(), deadline);
  };
  report.command = "update";
  report.versions = versions();
  const Report nothing_yet = report;
  Job job = start_job(
      options.timeout_s, finish, [&](const Error& error) { write_late_report(outputs.json, nothing_yet, error); },
      options.trainers);
  if (options.preflight) return run_preflight(options, job);
  Update update(options, outputs, job, report, timeline);
  return job.run([&] { update.run(); });
}

}  // namespace weightcast
