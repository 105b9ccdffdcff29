#include <algorithm>

#include "commands/commands.hpp"
#include "commands/tensor_reader.hpp"
#include "output/notes.hpp"
#include "output/progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"

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

}  // namespace

CommandSpec inspect_command() {
  return {
      .name = "inspect",
      .arguments = "PATH [--digest] [--ignore PATTERNS]",
      .summary =
          "Lists the tensors of a checkpoint folder, safetensors file or HDF5 snapshot.\n"
          "A checkpoint with its config.json is shown as update reads it: its model's parameters.",
      .options = {{"digest", "", "read everything and show digests; a snapshot's own are checked"}, ignore_option()},
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

  std::size_t width = 6;
  for (const TensorInfo& tensor : tensors) width = std::max(width, printable(tensor.name).size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& tensor = tensors[i];
    fmt::print("{:<{}}  {:<24}  {:>15}{}\n", printable(tensor.name), width, tensor.describe(),
               tensor.size_bytes().value(), digests.empty() ? "" : "  " + digests[i].hex());
  }
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
