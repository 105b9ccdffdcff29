#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/checkpoint/checkpoint_files.hpp"
#include "weightcast/checkpoint/safetensors_header.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/output_folder.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";

/// Tensors [first, last) of the content, in one file.
struct Shard {
  std::size_t first = 0, last = 0;
  std::uint64_t bytes = 0;
  std::string name;
};

std::vector<Shard> cut_into_shards(std::span<const TensorInfo> tensors, std::uint64_t shard_bytes) {
  std::vector<Shard> shards(1);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto size = tensors[i].size_bytes();
    WEIGHTCAST_EXPECTS(size);
    const auto& open = shards.back();
    if (open.bytes > 0 && (open.bytes > shard_bytes || *size > shard_bytes - open.bytes))
      shards.push_back({i, i, 0, {}});
    shards.back().last = i + 1;
    shards.back().bytes += *size;
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].name =
        shards.size() == 1 ? single_name : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

/// A piece of a tensor and where it goes.
struct Block {
  std::size_t tensor;
  std::uint64_t offset;  // in the tensor
  std::size_t size;
  std::size_t file;
  std::uint64_t file_offset;
};

}  // namespace

void write_checkpoint(const std::string& directory, const CheckpointContent& content, std::uint64_t shard_bytes,
                      const std::string& config_json, std::size_t threads,
                      const std::function<void(std::uint64_t bytes)>& progress, Existing existing) {
  const std::span<const TensorInfo> tensors(content.tensors);
  const auto shards = cut_into_shards(tensors, shard_bytes);
  WeightMap weight_map;
  for (const auto& shard : shards) {
    for (std::size_t i = shard.first; i < shard.last; ++i) weight_map.emplace(tensors[i].name, shard.name);
  }
  WEIGHTCAST_EXPECTS(weight_map.size() == tensors.size());

  // All files are reserved before the first byte is written, so that a full disk costs nothing, and all are filled as
  // one list of blocks, so that no thread waits at the end of a file.
  OutputFolder folder(directory, existing);
  std::uint64_t needed_bytes = 0;
  for (const auto& shard : shards) needed_bytes += shard.bytes;
  expect_space(directory, needed_bytes);
  std::vector<Block> blocks;
  std::uint64_t total_bytes = 0;
  for (const auto& shard : shards) {
    const auto header =
        make_safetensors_header(tensors.subspan(shard.first, shard.last - shard.first), {{"format", "pt"}});
    const auto file = folder.add(shard.name, header.size() + shard.bytes);
    folder.write(file, 0, std::as_bytes(std::span(header)));
    std::uint64_t file_offset = header.size();
    for (std::size_t i = shard.first; i < shard.last; ++i) {
      const auto tensor_bytes = *tensors[i].size_bytes();
      for (std::uint64_t offset = 0; offset < tensor_bytes; offset += checkpoint_block_bytes) {
        const auto size = std::min<std::uint64_t>(checkpoint_block_bytes, tensor_bytes - offset);
        blocks.push_back({i, offset, size, file, file_offset});
        file_offset += size;
      }
    }
    total_bytes += shard.bytes;
  }

  parallel_for(blocks.size(), threads, [&](std::size_t i) {
    const auto& block = blocks[i];
    const auto buffer = std::make_unique_for_overwrite<std::byte[]>(block.size);
    const std::span<std::byte> part(buffer.get(), block.size);
    content.fill(block.tensor, block.offset, part);
    folder.write(block.file, block.file_offset, part);
    if (progress) progress(block.size);
  });

  const auto add_text = [&](const char* name, const std::string& text) {
    folder.write(folder.add(name), 0, std::as_bytes(std::span(text)));
  };
  if (!config_json.empty()) add_text("config.json", config_json);
  if (shards.size() > 1) add_text(index_name, make_sharded_index(weight_map, total_bytes));
  folder.commit();
}

}  // namespace weightcast
