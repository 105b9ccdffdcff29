#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>

#include "commands/commands.hpp"
#include "commands/tensor_reader.hpp"
#include "output/notes.hpp"
#include "output/progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_bytes = 4 * mebibyte;

/// A range of bytes that both sides have.
struct Block {
  std::size_t in_a, in_b;  ///< index of the tensor
  bool stored;             ///< of what is in the files; otherwise of what is read as the model's dtype
  TensorInfo info;         ///< the tensor in that form
  std::uint64_t offset, size_bytes;
};

/// Pairs the tensors by name (both lists are sorted) and cuts the pairs into blocks: of the bytes in the files where
/// both have one dtype there. What has no equal counterpart comes into `differences`, a line each.
std::vector<Block> pair_tensors(const TensorReader& a, const TensorReader& b, std::vector<std::string>& differences) {
  std::vector<Block> blocks;
  const auto ta = a.tensors(), tb = b.tensors();
  const auto lone = [&](char side, const TensorInfo& tensor) {
    differences.push_back(fmt::format("only in {}: {} {}", side, printable(tensor.name), tensor.describe()));
  };
  for (std::size_t i = 0, j = 0; i < ta.size() || j < tb.size();) {
    if (j == tb.size() || (i < ta.size() && ta[i].name < tb[j].name)) {
      lone('A', ta[i++]);
    } else if (i == ta.size() || tb[j].name < ta[i].name) {
      lone('B', tb[j++]);
    } else {
      const bool stored = a.stored_dtype(i) == b.stored_dtype(j) && ta[i].shape == tb[j].shape;
      if (!stored && ta[i] != tb[j]) {
        differences.push_back(
            fmt::format("{}: A has {}, B has {}", printable(ta[i].name), ta[i].describe(), tb[j].describe()));
      } else {
        auto info = ta[i];
        if (stored) info.dtype = a.stored_dtype(i);
        const std::uint64_t size = info.size_bytes().value();
        for (std::uint64_t at = 0; at < size; at += block_bytes) {
          blocks.push_back({i, j, stored, info, at, std::min(block_bytes, size - at)});
        }
      }
      ++i, ++j;
    }
  }
  return blocks;
}

/// "0.0123 (0x3c4a)": an element as value, where it has one, and bits.
std::string show_element(DType dtype, const std::byte* element, std::size_t width) {
  std::string hex;
  for (std::size_t i = width; i-- > 0;) hex += fmt::format("{:02x}", static_cast<unsigned>(element[i]));
  const auto value = to_float(dtype, element);
  return value ? fmt::format("{} (0x{})", *value, hex) : "0x" + hex;
}

/// Names the first element in which the two copies of a block differ.
std::string show_difference(const TensorInfo& tensor, std::uint64_t offset, std::span<const std::byte> a,
                            std::span<const std::byte> b) {
  const auto byte = static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin());
  const auto width = static_cast<std::size_t>(bits(tensor.dtype) / 8);
  if (width == 0) return fmt::format("{}: first difference at byte {}", printable(tensor.name), offset + byte);
  const std::size_t start = byte / width * width;
  std::uint64_t element = (offset + start) / width, rest = element;
  std::vector<std::uint64_t> place(tensor.shape.size());
  for (std::size_t d = place.size(); d-- > 0; rest /= tensor.shape[d]) place[d] = rest % tensor.shape[d];
  return fmt::format("{}: first difference at element {} [{}]: A has {}, B has {}", printable(tensor.name), element,
                     fmt::join(place, ", "), show_element(tensor.dtype, a.data() + start, width),
                     show_element(tensor.dtype, b.data() + start, width));
}

/// Compares block by block until the first difference in the order of the blocks is known; its description, or nothing.
std::optional<std::string> compare(const TensorReader& a, const TensorReader& b, const std::vector<Block>& blocks) {
  std::uint64_t total = 0;
  for (const Block& block : blocks) total += block.size_bytes;
  Progress progress("comparing", total);
  std::atomic<std::size_t> next{0}, first{blocks.size()};
  std::mutex mutex;
  std::optional<std::string> difference;
  parallel_for(available_cores(), available_cores(), [&](std::size_t) {
    std::vector<std::byte> buffer_a(block_bytes), buffer_b(block_bytes);
    for (std::size_t i = next++; i < first; i = next++) {
      const Block& block = blocks[i];
      const auto part_a = std::span(buffer_a).first(block.size_bytes),
                 part_b = std::span(buffer_b).first(block.size_bytes);
      const auto read = block.stored ? &TensorReader::read_stored : &TensorReader::read;
      (a.*read)(block.in_a, block.offset, part_a);
      (b.*read)(block.in_b, block.offset, part_b);
      progress.add(block.size_bytes);
      if (std::memcmp(part_a.data(), part_b.data(), part_a.size()) == 0) continue;
      const std::scoped_lock lock(mutex);
      if (i >= first) continue;
      first = i;
      difference = show_difference(block.info, block.offset, part_a, part_b);
    }
  });
  return difference;
}

}  // namespace

CommandSpec verify_command() {
  return {
      .name = "verify",
      .arguments = "A B [--ignore PATTERNS] [--all]",
      .summary =
          "Compares two of: checkpoint folder, safetensors file, HDF5 snapshot; every bit.\n"
          "A checkpoint with its config.json counts as update reads it: its model's parameters; floats of two types "
          "are\n"
          "compared in the model's.\n"
          "Exit status 0: the same; 1: different, with the first difference named; 2: trouble.",
      .options = {ignore_option(), {"all", "", "list every tensor that only one has, or in another shape"}},
      .paths = 2,
      .error_status = 2,
  };
}

int run_verify(const Options& options) {
  const auto ignore = options.list("ignore");
  TensorReader a(options.paths()[0], ignore), b(options.paths()[1], ignore);
  if (a.model() != nullptr) b.match_with(*a.model());
  if (b.model() != nullptr) a.match_with(*b.model());
  std::vector<std::string> differences;
  const auto blocks = pair_tensors(a, b, differences);
  const bool rounded = std::any_of(blocks.begin(), blocks.end(), [](const Block& block) { return !block.stored; });
  for (const auto& [side, reader] : {std::pair("A", &a), std::pair("B", &b)}) {
    print_notes(side, reader->notes());
    if (rounded && !reader->rounding().empty()) print_notes(side, {reader->rounding()});
  }
  constexpr std::size_t most_shown = 10;
  const auto shown = options.flag("all") ? differences.size() : std::min(differences.size(), most_shown);
  for (const auto& line : std::span(differences).first(shown)) fmt::print("{}\n", line);
  if (const auto more = differences.size() - shown; more > 0)
    fmt::print("... and {} more tensors differ in name or shape (--all lists them)\n", more);
  const auto difference = compare(a, b, blocks);
  if (difference) fmt::print("{}\n", *difference);
  if (difference || !differences.empty()) {
    fmt::print("different\n");
    return 1;
  }
  fmt::print("the same: {} tensors, {} ({} bytes)\n", a.tensors().size(), format_size(a.size_bytes()), a.size_bytes());
  return 0;
}

}  // namespace weightcast
