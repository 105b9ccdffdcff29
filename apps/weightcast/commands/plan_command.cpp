#include "commands/commands.hpp"
#include "commands/named_weights.hpp"
#include "options/format_options.hpp"
#include "options/source_options.hpp"
#include "output/notes.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

CommandSpec plan_command() {
  return {
      .name = "plan",
      .arguments =
          "--checkpoint DIR | --model SHAPE [--tp N] [--dp N] [--trainers R] [--source-layout LAYOUT] [--ep] "
          "[--quantize FORMAT] [--ignore PATTERNS] [--all] [--wide]",
      .summary =
          "Shows which bytes every engine rank would receive, and proves that nothing is missing or sent in vain.",
      .options = {{"checkpoint", "DIR", "a checkpoint folder with its config.json"},
                  model_option("SHAPE", "shape of the model"),
                  {"tp", "N", "tensor-parallel ranks of an engine", "1"},
                  {"dp", "N", "engines (replicas)", "1"},
                  trainers_option(),
                  source_layout_option(),
                  ep_option(),
                  quantize_option(),
                  ignore_option(),
                  {"all", "", "a row for each engine tensor and each rank; otherwise equal ones have one"},
                  wide_option()},
  };
}

namespace {

/// The config of a checkpoint whose tensors fit it.
ModelConfig config_of(const std::string& path, const std::vector<std::string>& ignore) {
  const auto checkpoint = open_checkpoint(path);
  auto notes = checkpoint.notes();
  const auto model = build_model(config_of(checkpoint, notes));
  const auto match = match_checkpoint(model, checkpoint.tensors(), path, ignore);
  notes.insert(notes.end(), match.notes.begin(), match.notes.end());
  if (!match.rounding.empty()) notes.push_back(match.rounding);
  print_notes(path, notes);
  return model.config;
}

}  // namespace

int run_plan(const Options& options) {
  options.paths();
  const std::string checkpoint = options.text("checkpoint"), shape = options.text("model");
  if (checkpoint.empty() == shape.empty()) {
    throw Error(ExitCode::usage, "plan needs --checkpoint or --model, and not both", "see weightcast plan --help");
  }
  const auto config = checkpoint.empty() ? load_model_config(shape) : config_of(checkpoint, options.list("ignore"));
  constexpr std::uint64_t most_ranks = 1'000'000;
  const auto sources = parse_source_options(options);
  const auto tp = options.number("tp", 1, most_ranks);
  const auto model = build_model(config, format_of(parse_format_options(options), tp));
  const TransferPlan plan = make_plan(model, tp, options.number("dp", 1, most_ranks),
                                      make_layout(sources.source_layout, model, sources.trainers));
  const auto violation = prove_coverage(plan);
  fmt::print("{}", describe(plan, violation, {.all = options.flag("all"), .wide = options.flag("wide")}));
  if (!violation.empty()) fail(ExitCode::internal, "the plan is wrong: {}", violation);
  return 0;
}

}  // namespace weightcast
