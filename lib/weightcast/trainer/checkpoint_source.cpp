#include "weightcast/trainer/checkpoint_source.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/narrow_float.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_bytes = 4 * mebibyte, step_elements = 256 * 1024;

std::uint64_t width_bytes(DType dtype) noexcept {
  return static_cast<std::uint64_t>(bits(dtype)) / 8;
}

/// Converts `count` weights to the nearest of type `to`, ties to even.
void convert(DType to, std::byte* destination, DType from, const std::byte* source, std::uint64_t count) noexcept {
  const auto wide = from == DType::F32 ? WideFloat::f32 : from == DType::BF16 ? WideFloat::bf16 : WideFloat::f16;
  if (to != DType::F32) {
    return narrow(to == DType::BF16 ? NarrowFloat::bf16 : NarrowFloat::f16, destination, source, count, wide);
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, source + 2 * i, 2);
    const auto value = widen(wide, half);
    std::memcpy(destination + 4 * i, &value, 4);
  }
}

}  // namespace

CheckpointSource::CheckpointSource(const Model& model, Checkpoint checkpoint, std::span<const std::string> ignore)
    : checkpoint_(std::move(checkpoint)),
      match_(match_checkpoint(model, checkpoint_.tensors(), checkpoint_.path(), ignore)) {
  for (const auto& rule : model.parameters) dtypes_.push_back(rule.info.dtype);
  if (match_.alias >= 0)
    check_alias(model.parameters[static_cast<std::size_t>(model.find("model.embed_tokens.weight"))].info);
}

void CheckpointSource::read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const {
  read_as(dtypes_[parameter], static_cast<std::size_t>(match_.source[parameter]), offset, destination);
}

std::vector<std::string> CheckpointSource::notes() const {
  std::vector<std::string> notes = checkpoint_.notes();
  notes.insert(notes.end(), match_.notes.begin(), match_.notes.end());
  if (!match_.rounding.empty()) notes.push_back(match_.rounding);
  for (auto& note : notes) note = fmt::format("{}: {}", checkpoint_.path(), note);
  return notes;
}

void CheckpointSource::read_as(DType dtype, std::size_t index, std::uint64_t offset,
                               std::span<std::byte> destination) const {
  const auto stored = checkpoint_.tensors()[index].dtype;
  if (stored == dtype) return checkpoint_.read(index, offset, destination);
  const auto from = width_bytes(stored), to = width_bytes(dtype);
  std::vector<std::byte> read, converted;
  while (!destination.empty()) {
    // Whole elements; the first and the last may be wanted in part only.
    const auto first = offset / to, before = offset % to;
    const auto count = std::min(step_elements, (before + destination.size() + to - 1) / to);
    read.resize(count * from);
    converted.resize(count * to);
    checkpoint_.read(index, first * from, read);
    convert(dtype, converted.data(), stored, read.data(), count);
    const auto size = std::min<std::uint64_t>(destination.size(), count * to - before);
    std::memcpy(destination.data(), converted.data() + before, size);
    destination = destination.subspan(size);
    offset += size;
  }
}

/// The lm_head.weight of a tied model must be the embedding, bit for bit: as stored where both have one type.
void CheckpointSource::check_alias(const TensorInfo& embedding) const {
  const auto tensors = checkpoint_.tensors();
  const auto first = static_cast<std::size_t>(match_.source.front()), second = static_cast<std::size_t>(match_.alias);
  const auto dtype = tensors[first].dtype == tensors[second].dtype ? tensors[first].dtype : embedding.dtype;
  const std::uint64_t size = *embedding.elements() * width_bytes(dtype);
  const std::size_t blocks = (size + block_bytes - 1) / block_bytes;
  parallel_for(blocks, available_cores(), [&](std::size_t block) {
    const std::uint64_t offset = block * block_bytes;
    std::vector<std::byte> a(std::min(block_bytes, size - offset)), b(a.size());
    read_as(dtype, first, offset, a);
    read_as(dtype, second, offset, b);
    if (a != b) {
      throw Error(ExitCode::bad_data,
                  fmt::format("{}: {} differs from {}, although tie_word_embeddings says that they are one",
                              checkpoint_.path(), tensors[second].name, tensors[first].name),
                  "set tie_word_embeddings to false in config.json, or leave it out by --ignore");
    }
  });
}

ModelConfig config_of(const Checkpoint& checkpoint, std::vector<std::string>& notes) {
  const auto path = (std::filesystem::path(checkpoint.folder()) / "config.json").string();
  if (!std::filesystem::exists(path)) {
    throw Error(ExitCode::no_input,
                fmt::format("{} has no config.json, so its model is unknown", printable(checkpoint.folder())),
                "put the config.json of its model there, or (of update) name the shape with --model");
  }
  return load_model_config(path, {dtype_of_weights(checkpoint.tensors()), &notes});
}

}  // namespace weightcast
