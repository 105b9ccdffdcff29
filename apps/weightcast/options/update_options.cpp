#include "options/update_options.hpp"

#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {
namespace {

/// Of two outputs with one name the later would replace the earlier.
void expect_distinct(const Options& options, std::initializer_list<const char*> names) {
  std::map<std::string, std::string> seen;
  for (const std::string name : names) {
    if (options.text(name).empty()) continue;
    const auto [other, is_new] = seen.emplace(options.text(name), name);
    if (is_new || options.text(name).starts_with("/dev/")) continue;
    throw Error(ExitCode::usage, fmt::format("--{} and --{} name one file", other->second, name),
                "give each output a name of its own");
  }
}

}  // namespace

CommandSpec update_command() {
  return {
      .name = "update",
      .arguments = "--initial PATH|synth[:SEED] --target PATH|synth[:SEED] [options]",
      .summary =
          "Moves the weights of --target from a trainer to engines that start with those of --initial.\n"
          "The first ranks are the trainer, rank 0 alone by default; trainers + tp x dp ranks in all.\n"
          "All engines switch, verified, or none.",
      .options = {{"initial", "WEIGHTS",
                   "what the engines start with: a checkpoint, an HDF5 snapshot, or synth:SEED for made-up weights"},
                  {"target", "WEIGHTS", "what the trainer publishes"},
                  model_option("SHAPE", "shape of the model, needed when both weights are made up"),
                  ignore_option(),
                  {"tp", "N", "tensor-parallel ranks of an engine; default (world - trainers) / dp"},
                  {"dp", "N", "engines (replicas)", "1"},
                  trainers_option(),
                  source_layout_option(),
                  ep_option(),
                  quantize_option(),
                  {"device", "DEVICE", "auto, host or cuda: where the weights are", "auto"},
                  {"trainer-device", "DEVICE", "host or cuda: where the trainer's are; default: as --device"},
                  {"gpus", "LIST",
                   "GPU of each rank that is on one, in rank order, like 0,1,1; default: the host's GPUs in turn"},
                  {"transport", "NAME", "auto, direct, nccl or mpi", "auto"},
                  {"method", "NAME", "sharded (each rank gets its part) or broadcast (everybody gets everything)",
                   "sharded"},
                  {"granularity", "UNIT", "model (one transaction) or parameter (one request per parameter)", "model"},
                  delta_option(),
                  delta_limit_option(),
                  {"commit", "MODE", "swap (two slots) or in-place (one)", "swap"},
                  {"verify", "EXTENT", "none, sample (twelve parameters, first rows) or all (every byte)", "all"},
                  {"truncate", "ROWS", "rows that --verify sample compares", "10"},
                  {"repeat", "N", "update N times, alternating target and initial", "1"},
                  {"scrub", "N",
                   "after every N updates engines hold all that they serve against what was committed; 0: never", "0"},
                  {"snapshot", "FILE.h5", "write the engine's weights after the last update"},
                  {"force", "", "let the snapshot replace a file that is there"},
                  {"readers", "N",
                   "threads that read on each engine at full rate during the updates, and check what they get", "0"},
                  wide_option(),
                  {"timeout", "DURATION", "the longest that any wait may take", "60s"},
                  {"json", "FILE", "write a report"},
                  {"trace", "FILE", "write a timeline of all ranks and layers, for Perfetto or chrome://tracing"},
                  {"preflight", "",
                   "show ranks, hosts, devices and transports, check that --transport can be used, then stop"}},
      .parallel = true,
  };
}

UpdateOptions parse_update_options(const Options& options) {
  options.paths();
  UpdateOptions result;
  result.preflight = options.flag("preflight");
  result.initial = result.preflight ? options.text("initial") : options.required("initial");
  result.target = result.preflight ? options.text("target") : options.required("target");
  result.ignore = options.list("ignore");
  if (options.has("model")) result.model = options.required("model");
  static_cast<JobOptions&>(result) = parse_job_options(options);
  result.transport = options.choice<TransportChoice>("transport");
  result.method = options.choice<Method>("method");
  result.granularity = options.choice<Granularity>("granularity");
  result.delta = options.choice<DeltaChoice>("delta");
  result.delta_limit = options.share("delta-limit");
  result.commit = options.choice<CommitMode>("commit");
  result.verify = options.choice<VerifyChoice>("verify");
  result.truncate = options.number("truncate", 1);
  result.repeat = options.number("repeat", 1);
  result.scrub = options.number("scrub", 0);
  result.snapshot = options.text("snapshot");
  result.force = options.flag("force");
  result.wide = options.flag("wide");
  result.trace = options.text("trace");
  expect_distinct(options, {"snapshot", "json", "trace"});
  const bool initial_made_up = synthetic_seed(result.initial).has_value();
  if (synthetic_seed(result.target) && initial_made_up && !result.model) {
    throw Error(ExitCode::usage, "made-up weights need the shape of a model",
                "add --model SHAPE, for example --model tiny");
  }
  return result;
}

}  // namespace weightcast
