// How a training loop uses weightcast: train() and serve() are the example, the rest is around it.
//
//   mpirun -n 3 weightcast-example-trainer --model tiny --steps 5
#include <fmt/format.h>
#include <unistd.h>

#include "adamw.hpp"
#include "commands/commands.hpp"
#include "options/delta_options.hpp"
#include "options/job_options.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/engine/engine.hpp"
#include "weightcast/job/error_block.hpp"
#include "weightcast/job/job.hpp"
#include "weightcast/job/launch.hpp"
#include "weightcast/job/placement.hpp"
#include "weightcast/job/side.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/trainer/trainer.hpp"

namespace weightcast {
namespace {

/// The training side, rank 0.
void train(Trainer& trainer, std::size_t weights, AdamW& optimiser, std::uint64_t steps) {
  fmt::print("{:>5} {:>9} {:>15} {:>8} {:>10}  {}\n", "step", "changed", "sent", "fill ms", "update ms", "digest");
  for (std::uint64_t step = 1; step <= steps; ++step) {
    const double changed = optimiser.step();
    const Stopwatch watch;
    trainer.fill(weights, optimiser.tensors());  // rounds the fp32 masters to what is sent
    const double fill_s = watch.elapsed_s();
    const auto update = trainer.update_weights(weights, step);  // every engine rank serves them, or none
    const bool delta = update.payload == Payload::delta;        // what changed, once there is something that it changes
    fmt::print("{:>5} {:>8.2f}% {:>15} {:>8.2f} {:>10.2f}  {}\n", update.version, 100 * changed,
               fmt::format("{} {}", delta ? "delta" : "dense", format_size(update.egress_bytes)), 1e3 * fill_s,
               1e3 * update.total_s(), update.digest->hex());
  }
}

/// The serving side, on the first rank of each engine, while the others are in Engine::serve(). Other threads may ask
/// the engine for weights all the while.
void serve(Engine& engine, std::uint64_t steps) {
  for (std::uint64_t step = 1; step <= steps; ++step) engine.update_weights(step).throw_if_refused();
}

/// Every engine rank compares what it serves, byte by byte, with the trainer's masters rounded one by one.
void check(const Side& side, Job& job, const AdamW* optimiser) {
  const auto& model = side.plan().model;
  const auto tensors = model.tensors();
  std::vector<std::vector<std::byte>> expected;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto size_bytes = *model.parameters[tensors[i]].info.size_bytes();
    expected.push_back(optimiser != nullptr ? optimiser->rounded(i) : std::vector<std::byte>(size_bytes));
  }
  job.agree_patiently("check", model.size_bytes(), [&](const Pulse& pulse, Deadline deadline) {
    for (auto& bytes : expected) pulse.check(), job.world().broadcast(bytes, 0, deadline);
  });
  const auto result = side.check([&](std::size_t p, std::uint64_t offset, std::span<std::byte> to) {
    const auto tensor = static_cast<std::size_t>(std::ranges::upper_bound(tensors, p) - tensors.begin()) - 1;
    std::copy_n(expected[tensor].begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
  });
  agree(job.world(), "check", job.deadline(), [&] {
    if (result.first) fail(ExitCode::mismatch, "{} parameters differ: {}", result.mismatched.size(), *result.first);
  });
  if (optimiser != nullptr)
    fmt::print("{} of {} parameters on {} engine ranks are the masters in {}\n", tensors.size(), tensors.size(),
               job.world().size() - 1, name(model.config.dtype));
}

CommandSpec command() {
  return {.name = "weightcast-example-trainer",
          .arguments = "[options]",
          .summary = "trains on rank 0 (AdamW, random gradients) and sends the weights to all other ranks",
          .options = {{"model", "SHAPE", "a named shape, or a config.json", "tiny"},
                      {"steps", "N", "training steps, each with an update", "5"},
                      {"tp", "N", "tensor-parallel ranks of each engine; default: all but the trainer"},
                      {"dp", "N", "engine replicas", "1"},
                      {"device", "KIND", "where the weights are: auto, host or cuda", "auto"},
                      delta_limit_option(),
                      {"timeout", "TIME", "of each stage of an update", "60s"}},
          .parallel = true,
          .program = ""};
}

int run(const Options& options) {
  const auto model = options.text("model");
  const auto steps = options.number("steps", 1);
  const auto wanted = parse_job_options(options);

  Job job(
      wanted.timeout_s, [](const std::optional<Error>&) {}, [](const Error&) {});
  const auto body = [&] {
    TransferPlan plan;
    agree(job.world(), "start", job.deadline(), [&] {
      const auto roster = form_roster(wanted.tp, wanted.dp, job.world().size());
      plan = make_plan(build_model(load_model_config(model)), roster.tp, roster.dp);
    });
    const auto placement = choose_placement(job.world(), plan.roster(), wanted, job.deadline());
    const GroupOptions group{.timeout_s = wanted.timeout_s, .delta_limit = options.share("delta-limit")};
    Side side(job, plan, placement);
    side.create();
    if (side.trainer() != nullptr) {
      AdamW optimiser(plan.model, placement);
      const auto weights = side.trainer()->reserve();
      side.form_group(group, 0);
      while_serving(job, nullptr, [&](const Communicator&) { train(*side.trainer(), weights, optimiser, steps); });
      check(side, job, &optimiser);
    } else {
      side.form_group(group, 0);
      while_serving(job, side.engine(), [&](const Communicator&) { serve(*side.engine(), steps); });
      check(side, job, nullptr);
    }
  };
  return job.run(body);
}

}  // namespace
}  // namespace weightcast

int main(int argc, char** argv) {
  using namespace weightcast;
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    std::vector<std::string> environment;
    for (char** variable = environ; *variable != nullptr; ++variable) environment.emplace_back(*variable);
    auto names = known_option_names();
    for (const auto& option : command().options) names.insert(option.name);
    const auto options = Options::parse(command(), arguments, environment, names);
    if (options.print_config()) {
      if (launch_rank() == 0) fmt::print("{}", options.describe());
      return 0;
    }
    if (!options.help()) return run(options);
    if (launch_rank() == 0) fmt::print("{}", usage_text(command()));
    return 0;
  } catch (...) {
    const auto error = current_error();
    if (launch_rank() == 0) fmt::print(stderr, "{}", error_block(error, static_cast<int>(error.code())));
    return static_cast<int>(error.code());
  }
}
