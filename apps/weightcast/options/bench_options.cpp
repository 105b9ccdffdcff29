#include "options/bench_options.hpp"

#include <algorithm>

namespace weightcast {

CommandSpec bench_command() {
  return {
      .name = "bench",
      .arguments = "--model SHAPE [options]",
      .summary =
          "Times updates with weights made in memory.\n"
          "A row per combination of model, transport, method and granularity.",
      .options = {model_option("LIST", "shapes of models"),
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
                  {"transport", "LIST", "of auto, direct, nccl, mpi", "auto"},
                  {"method", "LIST", "of sharded, broadcast", "sharded"},
                  {"granularity", "LIST", "of model, parameter", "model"},
                  {"commit", "MODE", "swap (engines have two slots) or in-place (one)", "swap"},
                  bench_delta_option(),
                  delta_limit_option(),
                  changed_option(),
                  {"repeat", "N", "timed updates of each combination", "20"},
                  {"warmup", "N", "updates before them, not counted", "2"},
                  {"group-warmup", "SWITCH", "on or off: exercise the paths when the group is formed", "on"},
                  {"ceiling", "", "also time one plain copy of the same size over the same path"},
                  {"verify", "LIST", "of all (time the whole verified transaction), none (the movement alone)", "all"},
                  {"readers", "N",
                   "threads that read on each engine at full rate during the updates, and check what they get", "0"},
                  wide_option(),
                  {"timeout", "DURATION", "the longest that any wait may take", "60s"},
                  {"json", "FILE", "write a report"}},
      .parallel = true,
  };
}

BenchOptions parse_bench_options(const Options& options) {
  options.paths();
  BenchOptions result;
  options.required("model");
  result.models = options.list("model");
  static_cast<JobOptions&>(result) = parse_job_options(options);
  result.transports = options.choices<TransportChoice>("transport");
  result.methods = options.choices<Method>("method");
  result.granularities = options.choices<Granularity>("granularity");
  result.commit = options.choice<CommitMode>("commit");
  result.deltas = options.choices<BenchDelta>("delta");
  result.delta_limit = options.share("delta-limit");
  if (options.has("changed")) result.changed = options.share("changed");
  result.repeat = options.number("repeat", 1);
  result.warmup = options.number("warmup");
  result.group_warmup = options.choice<SwitchChoice>("group-warmup") == SwitchChoice::on;
  result.ceiling = options.flag("ceiling");
  result.wide = options.flag("wide");
  result.verifies = options.choices<VerifyChoice>("verify");
  if (std::ranges::find(result.verifies, VerifyChoice::sample) != result.verifies.end()) {
    throw Error(ExitCode::usage, "bench cannot verify a sample", "choose --verify all or --verify none");
  }
  return result;
}

}  // namespace weightcast
