#include "commands.hpp"
#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

CommandSpec plan_command() {
  return {
      .name = "plan",
      .arguments = "--checkpoint DIR | --model SHAPE [--tp N] [--dp N]",
      .summary =
          "Shows which bytes every engine rank would receive, and proves that nothing is missing or sent in vain.",
      .options = {{"checkpoint", "DIR", "a checkpoint folder with its config.json"},
                  {"model", "SHAPE", "a named shape or config.json"},
                  {"tp", "N", "tensor-parallel ranks of an engine", "1"},
                  {"dp", "N", "engines (replicas)", "1"}},
  };
}

int run_plan(const Options& options) {
  options.paths();
  const std::string checkpoint = options.text("checkpoint"), shape = options.text("model");
  if (checkpoint.empty() == shape.empty()) {
    throw Error(ExitCode::usage, "plan needs --checkpoint or --model, and not both", "see weightcast plan --help");
  }
  const Model model = build_model(load_model_config(checkpoint.empty() ? shape : checkpoint));
  if (!checkpoint.empty()) match_tensors(model, Checkpoint::open(checkpoint).tensors(), checkpoint);
  const TransferPlan plan = make_plan(model, options.number("tp", 1, 1'000'000), options.number("dp", 1, 1'000'000));
  fmt::print("{}", describe(plan));
  if (const std::string violation = prove_coverage(plan); !violation.empty()) {
    fail(ExitCode::internal, "the plan is wrong: {}", violation);
  }
  return 0;
}

}  // namespace weightcast
