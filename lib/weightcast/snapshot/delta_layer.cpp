#include "weightcast/snapshot/delta_layer.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t blocks_at_once = 256;  // at most 12 MiB of entries

}  // namespace

DeltaLayer::DeltaLayer(InputFile file, std::vector<WalkedChange> changes, std::span<const TensorInfo> tensors,
                       std::span<Digest> digests)
    : file_(std::move(file)) {
  std::ranges::sort(changes, {}, &WalkedChange::name);
  for (const WalkedChange& change : changes) {
    const auto found = std::ranges::lower_bound(tensors, change.name, {}, &TensorInfo::name);
    if (found == tensors.end() || found->name != change.name)
      fail(ExitCode::bad_data, "{}: its base has no {}", file_.path(), printable(change.name));
    const TensorInfo& tensor = *found;
    const auto index = static_cast<std::size_t>(found - tensors.begin());
    if (!changes_.empty() && changes_.back().tensor == index) refuse(tensor, "it is there twice");
    if (change.dtype != tensor.dtype)
      refuse(tensor, fmt::format("it is {}, in the base {}", name(change.dtype), name(tensor.dtype)));
    if (change.base_digest != digests[index]) {
      refuse(tensor, fmt::format("it changes what has the digest {}, the base has {}", change.base_digest.hex(),
                                 digests[index].hex()));
    }
    const std::uint64_t elements = tensor.elements().value(), blocks = delta_block_count(elements);
    if (change.starts.count != blocks + 1)
      refuse(tensor, fmt::format("it has {} starts, not {}", change.starts.count, blocks + 1));
    if (change.indices.count != change.values.count || change.indices.count > elements) {
      refuse(tensor, fmt::format("{} indices and {} values do not fit {} elements", change.indices.count,
                                 change.values.count, elements));
    }
    digests[index] = change.digest;
    changes_.push_back(
        {index, change.starts.offset, change.indices.offset, change.values.offset, change.indices.count});
  }
}

void DeltaLayer::refuse(const TensorInfo& tensor, const std::string& why) const {
  throw Error(ExitCode::bad_data, fmt::format("{}: the change of {}: {}", file_.path(), printable(tensor.name), why),
              "the file is damaged: write it again with `weightcast snapshot --delta`");
}

std::uint64_t DeltaLayer::changed_elements() const noexcept {
  std::uint64_t count = 0;
  for (const Change& change : changes_) count += change.entries;
  return count;
}

void DeltaLayer::apply(std::size_t index, const TensorInfo& tensor, std::uint64_t offset,
                       std::span<std::byte> destination) const {
  const auto change = std::ranges::lower_bound(changes_, index, {}, &Change::tensor);
  if (change == changes_.end() || change->tensor != index || destination.empty()) return;
  const std::uint64_t block_bytes = delta_block_elements * element_bytes(tensor.dtype);
  const std::uint64_t end = (offset + destination.size() - 1) / block_bytes + 1;
  for (std::uint64_t block = offset / block_bytes; block < end; block += blocks_at_once)
    apply_blocks(*change, tensor, block, std::min(blocks_at_once, end - block), offset, destination);
}

void DeltaLayer::apply_blocks(const Change& change, const TensorInfo& tensor, std::uint64_t first, std::uint64_t count,
                              std::uint64_t offset, std::span<std::byte> destination) const {
  const std::uint64_t elements = tensor.elements().value(), width = element_bytes(tensor.dtype);
  std::vector<std::uint64_t> starts(count + 1);
  file_.read(change.starts + first * sizeof starts[0], std::as_writable_bytes(std::span(starts)));
  if (first == 0 && starts.front() != 0) refuse(tensor, "its starts do not begin at 0");
  if (first + count == delta_block_count(elements) && starts.back() != change.entries)
    refuse(tensor, fmt::format("its starts end at {}, not at {}", starts.back(), change.entries));
  if (!std::ranges::is_sorted(starts) || starts.back() > change.entries)
    refuse(tensor, "its starts do not ascend to the number of its entries");
  const auto block_elements = [&](std::uint64_t block) {
    return std::min(delta_block_elements, elements - (first + block) * delta_block_elements);
  };
  for (std::uint64_t block = 0; block < count; ++block) {
    if (starts[block + 1] - starts[block] > block_elements(block))
      refuse(tensor, fmt::format("block {} has more entries than elements", first + block));
  }

  const std::uint64_t entries = starts.back() - starts.front();
  std::vector<std::uint16_t> indices(entries);
  std::vector<std::byte> values(entries * width);
  file_.read(change.indices + starts.front() * sizeof indices[0], std::as_writable_bytes(std::span(indices)));
  file_.read(change.values + starts.front() * width, values);
  const std::uint64_t range_end = offset + destination.size();
  for (std::uint64_t block = 0; block < count; ++block) {
    std::int32_t previous = -1;
    for (std::uint64_t entry = starts[block]; entry < starts[block + 1]; ++entry) {
      const std::uint64_t here = entry - starts.front();
      if (indices[here] <= previous || indices[here] >= block_elements(block))
        refuse(tensor, fmt::format("the indices of block {} do not ascend within it", first + block));
      previous = indices[here];
      // The first and the last element may be wanted in part only.
      const std::uint64_t at = ((first + block) * delta_block_elements + indices[here]) * width;
      const std::uint64_t from = std::max(at, offset), to = std::min(at + width, range_end);
      if (from < to) std::memcpy(destination.data() + (from - offset), &values[here * width + (from - at)], to - from);
    }
  }
}

}  // namespace weightcast
