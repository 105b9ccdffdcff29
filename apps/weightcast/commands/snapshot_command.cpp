#include <algorithm>
#include <memory>

#include "commands/commands.hpp"
#include "commands/named_weights.hpp"
#include "options/format_options.hpp"
#include "output/notes.hpp"
#include "output/progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/job/stop.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/trainer/quantized_source.hpp"

namespace weightcast {
namespace {

void print_line(const std::string& path, const Model& model, std::span<const Digest> digests) {
  fmt::print("{}: {} parameters, {} ({} bytes), digest {}\n", printable(path), digests.size(),
             format_size(model.size_bytes()), model.size_bytes(), digest_of_model(model, digests).hex());
}

void print_delta(const Model& model, const Snapshot& base, const DeltaSummary& delta) {
  const double share =
      static_cast<double>(delta.changed_elements) / static_cast<double>(std::max<std::uint64_t>(delta.elements, 1));
  fmt::print(
      "a delta against {} (digest {}): {} of {} elements changed ({:.3g} %), in {} of {} parameters; {} ({} bytes)\n",
      printable(base.path()), base.claimed_digest().hex(), delta.changed_elements, delta.elements, 100 * share,
      delta.changed_parameters, delta.digests.size(), format_size(delta.delta_bytes), delta.delta_bytes);
  if (delta.delta_bytes > model.size_bytes())
    print_notes("", {"the delta is larger than the weights: without --delta the file would be smaller"});
}

}  // namespace

CommandSpec snapshot_command() {
  return {
      .name = "snapshot",
      .arguments =
          "--checkpoint DIR --output FILE.h5 [--delta BASE.h5] [--quantize FORMAT] [--ignore PATTERNS] "
          "[--force]",
      .summary =
          "Writes the HDF5 reference snapshot of a checkpoint, whole or as what changed since another one.\n"
          "A delta is read wherever a snapshot is, as long as its base lies beside it; that may be a delta, too.",
      .options = {{"checkpoint", "DIR", "a checkpoint folder with its config.json"},
                  {"output", "FILE.h5", "the file to write"},
                  {"delta",
                   "BASE.h5",
                   "write only what differs, in any bit, from this snapshot, which is in the folder of the output; "
                   "WEIGHTCAST_DELTA is another command's",
                   {},
                   false},
                  quantize_option(),
                  ignore_option(),
                  {"force", "", "replace a file that is there"}},
  };
}

int run_snapshot(const Options& options) {
  options.paths();
  const std::string checkpoint = options.required("checkpoint"), output = options.required("output");
  const OutputName name(output, options.flag("force") ? Existing::replace : Existing::refuse);
  { const OutputFile it_can_be_made(name); }
  auto opened = open_checkpoint(checkpoint);
  std::vector<std::string> notes;
  const Model plain = tensors_of(build_model(config_of(opened, notes)));
  const Model model = tensors_of(build_model(plain.config, {.quantization = options.choice<Quantization>("quantize")}));
  const auto ignore = options.list("ignore");
  std::unique_ptr<WeightSource> source = std::make_unique<CheckpointSource>(plain, std::move(opened), ignore);
  if (model.format.quantization != Quantization::none) source = quantized_source(model, plain, std::move(source));
  print_notes("", notes);
  print_notes("", source->notes());
  const std::string when = "while it wrote " + output;
  const auto read = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    source->read(index, offset, destination);
  };
  SnapshotInfo info{.version = 1, .digests = {}, .settings = {{"source", source->describe()}}};
  if (!options.has("delta")) {
    std::vector<Digest> digests;
    run_until_asked(when, [&] {
      Progress progress("writing " + output, model.size_bytes());
      digests = write_snapshot(name, model, read, info,
                               [&](std::uint64_t bytes) { stop_if_asked(when), progress.add(bytes); });
    });
    print_line(output, model, digests);
    return 0;
  }
  const auto base = Snapshot::open(options.required("delta"));
  info.version = base.version() + 1;
  DeltaSummary delta;
  run_until_asked(when, [&] {
    Progress progress("comparing with " + base.path(), model.size_bytes());
    delta = write_delta_snapshot(name, base, model, source->describe(), read, info,
                                 [&](std::uint64_t bytes) { stop_if_asked(when), progress.add(bytes); });
  });
  print_line(output, model, delta.digests);
  print_delta(model, base, delta);
  return 0;
}

}  // namespace weightcast
