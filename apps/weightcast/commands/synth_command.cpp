#include "commands/commands.hpp"
#include "output/progress.hpp"
#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

CommandSpec synth_command() {
  return {
      .name = "synth",
      .arguments = "--model SHAPE --output DIR [--seed N] [--shard-size SIZE] [--force]",
      .summary = "Writes a checkpoint of made-up weights; a seed gives the same weights as synth:SEED in update.",
      .options = {model_option("SHAPE", "shape of the model"),
                  {"output", "DIR", "the folder to write, created when missing"},
                  {"seed", "N", "any number", "1"},
                  {"shard-size", "SIZE", "largest size of a file", "5G"},
                  {"force", "", "replace the whole folder when something is in it"}},
  };
}

int run_synth(const Options& options) {
  options.paths();
  const std::string output = options.required("output");
  const std::uint64_t seed = options.number("seed"), shard_bytes = options.size("shard-size");
  if (shard_bytes == 0) throw Error(ExitCode::usage, "--shard-size must not be 0", "write it like 5G");
  const Model model = tensors_of(build_model(load_model_config(options.required("model"))));
  const auto source = make_synthetic_source(model, seed);

  CheckpointContent content;
  for (const ParameterRule& rule : model.parameters) content.tensors.push_back(rule.info);
  content.fill = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    source->read(index, offset, destination);
  };
  const Existing existing = options.flag("force") ? Existing::replace : Existing::refuse;
  const std::string when = "while it wrote " + output;
  run_until_asked(when, [&] {
    Progress progress("writing " + output, model.size_bytes());
    write_checkpoint(
        output, content, shard_bytes, to_config_json(model.config), available_cores(),
        [&](std::uint64_t bytes) { stop_if_asked(when), progress.add(bytes); }, existing);
  });
  fmt::print("{}: {} parameters, {} ({} bytes), seed {}\n", printable(output), model.parameters.size(),
             format_size(model.size_bytes()), model.size_bytes(), seed);
  return 0;
}

}  // namespace weightcast
