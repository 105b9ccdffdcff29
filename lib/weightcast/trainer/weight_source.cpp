#include "weightcast/trainer/weight_source.hpp"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/elements.hpp"
#include "weightcast/device/memory.hpp"

namespace weightcast {
namespace {

constexpr std::string_view synthetic_prefix = "synth:";

/// The lowest bit of each element of a word that a change flips: one unit of 16 bits differs then.
std::uint64_t lowest_bits(DType dtype) noexcept {
  switch (element_bytes(dtype)) {
    case 2: return 0x0001000100010001;
    case 4: return 0x0000000100000001;
    default: return 1;
  }
}

/// Whose words are packed elements: what is kept are the sign, the low exponent bits and the mantissa, what is added
/// lifts the exponents so that 2^-16 <= |w| < 1 (FP16: 2^-8 <= |w| < 1). The sums never carry into the next element.
WordGenerator generator_of(const TensorInfo& tensor, std::uint64_t seed) {
  const auto start = splitmix(seed) ^ XXH3_64bits(tensor.name.data(), tensor.name.size());
  switch (tensor.dtype) {
    case DType::BF16: return {start, 0x87ff87ff87ff87ff, 0x3780378037803780};
    case DType::F16: return {start, 0x9fff9fff9fff9fff, 0x1c001c001c001c00};
    case DType::F32: return {start, 0x87ffffff87ffffff, 0x3780000037800000};
    case DType::F64: return {start, 0x80ffffffffffffff, 0x3ef0000000000000};
    default: break;
  }
  fail(ExitCode::config, "{}: there are no synthetic weights of type {}", tensor.name, name(tensor.dtype));
}

class SyntheticSource : public WeightSource {
 public:
  SyntheticSource(const Model& model, std::uint64_t seed, double changed_share) : seed_(seed), share_(changed_share) {
    generators_.reserve(model.parameters.size());
    for (const ParameterRule& rule : model.parameters) {
      auto& generator = generators_.emplace_back(generator_of(rule.info, seed));
      if (share_ == 0) continue;
      generator.chance = static_cast<std::uint64_t>(std::llround(std::ldexp(share_, 32)));
      generator.flip = lowest_bits(rule.info.dtype);
      generator.flip_start = splitmix(generator.start);
    }
  }

  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override {
    generate(generators_[parameter], offset, destination);
  }
  std::string describe() const override {
    return share_ == 0 ? fmt::format("synth:{}", seed_) : fmt::format("synth:{}, {:g} % changed", seed_, 100 * share_);
  }
  std::span<const WordGenerator> generators() const noexcept override { return generators_; }

 private:
  std::uint64_t seed_;
  double share_;
  std::vector<WordGenerator> generators_;
};

constexpr std::uint64_t block_bytes = 4 * mebibyte, step_elements = 256 * 1024;

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

void read_slice(const WeightSource& source, const Model& model, std::size_t parameter, const Slice& slice,
                std::span<std::byte> destination) {
  const auto& info = model.parameters[parameter].info;
  const auto element = element_bytes(info.dtype), pitch = matrix_of(info).columns * element;
  const auto row_bytes = slice.columns * element;
  if (row_bytes == pitch || slice.rows == 1)
    return source.read(parameter, slice.row * pitch + slice.column * element, destination);
  std::vector<std::byte> rows(slice.rows * pitch);
  source.read(parameter, slice.row * pitch, rows);
  copy_rows(destination.data(), row_bytes, rows.data() + slice.column * element, pitch, row_bytes, slice.rows);
}

CheckpointSource::CheckpointSource(const Model& model, Checkpoint checkpoint, std::span<const std::string> ignore)
    : checkpoint_(std::move(checkpoint)),
      match_(match_checkpoint(model, checkpoint_.tensors(), checkpoint_.path(), ignore)) {
  for (const auto& rule : model.parameters) dtypes_.push_back(rule.info.dtype);
  if (match_.alias >= 0)
    check_alias(model.parameters[static_cast<std::size_t>(model.find("model.embed_tokens.weight"))].info);
}

void CheckpointSource::read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const {
  read_as(dtypes_[parameter], static_cast<std::size_t>(match_.tensor_index[parameter]), offset, destination);
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
  const auto from = element_bytes(stored), to = element_bytes(dtype);
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
  const auto first = static_cast<std::size_t>(match_.tensor_index.front()),
             second = static_cast<std::size_t>(match_.alias);
  const auto dtype = tensors[first].dtype == tensors[second].dtype ? tensors[first].dtype : embedding.dtype;
  const std::uint64_t size = *embedding.elements() * element_bytes(dtype);
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
  return load_model_config(path,
                           {dtype_of_weights(checkpoint.tensors()), &notes, has_wide_routers(checkpoint.tensors())});
}

std::unique_ptr<WeightSource> make_synthetic_source(const Model& model, std::uint64_t seed, double changed_share) {
  WEIGHTCAST_EXPECTS(changed_share >= 0 && changed_share <= 1);
  return std::make_unique<SyntheticSource>(model, seed, changed_share);
}

std::optional<std::uint64_t> synthetic_seed(const std::string& spec) {
  if (spec == "synth") return 1;
  if (!spec.starts_with(synthetic_prefix)) return std::nullopt;
  std::uint64_t seed = 0;
  const char* const end = spec.data() + spec.size();
  const auto [rest, status] = std::from_chars(spec.data() + synthetic_prefix.size(), end, seed);
  if (status == std::errc() && rest == end) return seed;
  throw Error(ExitCode::usage, fmt::format("'{}' names no seed", printable(spec)), "write it like synth:7");
}

std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec,
                                          std::optional<Checkpoint> checkpoint, std::span<const std::string> ignore) {
  if (checkpoint) return std::make_unique<CheckpointSource>(model, std::move(*checkpoint), ignore);
  return make_synthetic_source(model, synthetic_seed(spec).value());
}

std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec) {
  return make_source(model, spec, synthetic_seed(spec) ? std::nullopt : std::optional(Checkpoint::open(spec)), {});
}

}  // namespace weightcast
