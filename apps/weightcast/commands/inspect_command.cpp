#include <algorithm>

#include "commands/commands.hpp"
#include "commands/tensor_reader.hpp"
#include "output/notes.hpp"
#include "output/progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/core/text_width.hpp"

namespace weightcast {
namespace {

std::vector<Digest> digests_of(const TensorReader& reader, const std::string& path) {
  std::vector<Digest> digests(reader.tensors().size());
  Progress progress("reading " + path, reader.size_bytes());
  parallel_for(digests.size(), available_cores(), [&](std::size_t index) {
    const auto size = reader.tensors()[index].size_bytes().value();
    digests[index] = digest_read(size, [&](std::uint64_t offset, std::span<std::byte> to) {
      reader.read(index, offset, to);
      progress.add(to.size());
    });
  });
  return digests;
}

/// A line for each tensor, that fits 80 columns or is wide: beside a digest there is no room for dtype, shape and
/// bytes.
std::string table_of(std::span<const TensorInfo> tensors, const std::vector<Digest>& digests, bool wide) {
  std::size_t name = 6, description = 0, bytes = 0;
  for (const TensorInfo& tensor : tensors) {
    name = std::max(name, printable(tensor.name).size());
    description = std::max(description, tensor.describe().size());
    bytes = std::max(bytes, fmt::to_string(tensor.size_bytes().value()).size());
  }
  const bool described = wide || digests.empty();
  const auto others = (described ? description + bytes + 4 : 0) + (digests.empty() ? 0 : Digest().hex().size() + 2);
  constexpr std::size_t least_name = 20;
  if (!wide) name = std::min(name, usual_columns - std::min(others, usual_columns - least_name));
  std::string text;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& tensor = tensors[i];
    text += fmt::format("{:<{}}", shorten(printable(tensor.name), name), name);
    if (described)
      text += fmt::format("  {:<{}}  {:>{}}", tensor.describe(), description, tensor.size_bytes().value(), bytes);
    text += digests.empty() ? "\n" : fmt::format("  {}\n", digests[i].hex());
  }
  return text;
}

}  // namespace

CommandSpec inspect_command() {
  return {
      .name = "inspect",
      .arguments = "PATH [--digest] [--ignore PATTERNS] [--wide]",
      .summary =
          "Lists the tensors of a checkpoint folder, safetensors file or HDF5 snapshot.\n"
          "A checkpoint with its config.json is shown as update reads it: its model's parameters.",
      .options = {{"digest", "", "read everything and show digests; a snapshot's own are checked"},
                  ignore_option(),
                  wide_option()},
      .paths = 1,
  };
}

int run_inspect(const Options& options) {
  const std::string& path = options.paths().front();
  const TensorReader reader(path, options.list("ignore"));
  print_notes(path, reader.notes());
  if (!reader.rounding().empty()) print_notes(path, {reader.rounding()});
  const auto tensors = reader.tensors();
  std::vector<Digest> digests;
  if (options.flag("digest")) digests = digests_of(reader, path);

  fmt::print("{}", table_of(tensors, digests, options.flag("wide")));
  fmt::print("{} tensors, {} ({} bytes){}\n", tensors.size(), format_size(reader.size_bytes()), reader.size_bytes(),
             digests.empty() ? "" : ", digest " + digest_of_set(tensors, digests).hex());

  const auto claimed = reader.claimed_digests();
  for (std::size_t i = 0; i < std::min(claimed.size(), digests.size()); ++i) {
    if (claimed[i] != digests[i]) {
      throw Error(ExitCode::mismatch,
                  fmt::format("{}: {} has the digest {}, but the file says {}", path, tensors[i].name, digests[i].hex(),
                              claimed[i].hex()),
                  "the file was damaged after it was written: write it again");
    }
  }
  return 0;
}

}  // namespace weightcast
