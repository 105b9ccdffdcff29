#include "commands/commands.hpp"
#include "output/notes.hpp"
#include "output/progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

CommandSpec snapshot_command() {
  return {
      .name = "snapshot",
      .arguments = "--checkpoint DIR --output FILE.h5 [--ignore PATTERNS] [--force]",
      .summary = "Writes the HDF5 reference snapshot of a checkpoint.",
      .options = {{"checkpoint", "DIR", "a checkpoint folder with its config.json"},
                  {"output", "FILE.h5", "the file to write"},
                  ignore_option(),
                  {"force", "", "replace a file that is there"}},
  };
}

int run_snapshot(const Options& options) {
  options.paths();
  const std::string checkpoint = options.required("checkpoint"), output = options.required("output");
  const OutputName name(output, options.flag("force") ? Existing::replace : Existing::refuse);
  auto opened = Checkpoint::open(checkpoint);
  std::vector<std::string> notes;
  const Model model = build_model(config_of(opened, notes));
  const auto ignore = options.list("ignore");
  const CheckpointSource source(model, std::move(opened), ignore);
  print_notes("", notes);
  print_notes("", source.notes());
  std::vector<Digest> digests;
  const std::string when = "while it wrote " + output;
  run_until_asked(when, [&] {
    const auto read = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
      source.read(index, offset, destination);
    };
    Progress progress("writing " + output, model.size_bytes());
    digests =
        write_snapshot(name, model, read, {.version = 1, .digests = {}, .settings = {{"source", source.describe()}}},
                       [&](std::uint64_t bytes) { stop_if_asked(when), progress.add(bytes); });
  });
  fmt::print("{}: {} parameters, {} ({} bytes), digest {}\n", printable(output), digests.size(),
             format_size(model.size_bytes()), model.size_bytes(), digest_of_model(model, digests).hex());
  return 0;
}

}  // namespace weightcast
