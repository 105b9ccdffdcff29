#include "weightcast/trainer/weight_source.hpp"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <utility>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_bytes = 4 * mebibyte;

/// The lm_head.weight of a tied model must be the embedding, bit for bit.
void check_alias(const Checkpoint& checkpoint, std::size_t embedding, std::size_t head) {
  const std::uint64_t size = checkpoint.tensors()[embedding].size_bytes().value();
  const std::size_t blocks = (size + block_bytes - 1) / block_bytes;
  parallel_for(blocks, available_cores(), [&](std::size_t block) {
    const std::uint64_t offset = block * block_bytes;
    std::vector<std::byte> a(std::min(block_bytes, size - offset)), b(a.size());
    checkpoint.read(embedding, offset, a);
    checkpoint.read(head, offset, b);
    if (a != b) {
      throw Error(ExitCode::bad_data,
                  fmt::format("{}: {} differs from {}, although tie_word_embeddings says that they are one",
                              checkpoint.path(), checkpoint.tensors()[head].name, checkpoint.tensors()[embedding].name),
                  "set tie_word_embeddings to false in config.json, or remove the tensor");
    }
  });
}

class CheckpointSource : public WeightSource {
 public:
  CheckpointSource(const Model& model, Checkpoint checkpoint)
      : checkpoint_(std::move(checkpoint)), match_(match_tensors(model, checkpoint_.tensors(), checkpoint_.path())) {
    if (match_.alias < 0) return;
    const auto embedding = static_cast<std::size_t>(model.find("model.embed_tokens.weight"));
    check_alias(checkpoint_, static_cast<std::size_t>(match_.source[embedding]),
                static_cast<std::size_t>(match_.alias));
  }

  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override {
    checkpoint_.read(static_cast<std::size_t>(match_.source[parameter]), offset, destination);
  }
  std::string describe() const override { return "checkpoint " + checkpoint_.path(); }

 private:
  Checkpoint checkpoint_;
  TensorMatch match_;
};

/// Turns 64 random bits into packed elements: `keep` selects the sign, the low exponent bits and the mantissa, `add`
/// lifts the exponents so that 2^-16 <= |w| < 1 (FP16: 2^-8 <= |w| < 1). The sums never carry into the next element.
struct ElementShape {
  std::uint64_t keep, add;
};

ElementShape element_shape(const TensorInfo& tensor) {
  switch (tensor.dtype) {
    case DType::BF16: return {0x87ff87ff87ff87ff, 0x3780378037803780};
    case DType::F16: return {0x9fff9fff9fff9fff, 0x1c001c001c001c00};
    case DType::F32: return {0x87ffffff87ffffff, 0x3780000037800000};
    case DType::F64: return {0x80ffffffffffffff, 0x3ef0000000000000};
    default: break;
  }
  fail(ExitCode::config, "{}: there are no synthetic weights of type {}", tensor.name, name(tensor.dtype));
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
constexpr std::uint64_t mix(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// Word i (8 bytes, little-endian) of a parameter is keep & mix(start + i * step) + add, so any range can be made
/// alone.
struct Generator {
  static constexpr std::uint64_t step = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio
  std::uint64_t start;
  ElementShape shape;

  std::uint64_t word(std::uint64_t index) const noexcept {
    return (mix(start + index * step) & shape.keep) + shape.add;
  }
  void words(std::uint64_t first, std::byte* destination, std::size_t count) const noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t value = word(first + i);
      std::memcpy(destination + 8 * i, &value, 8);
    }
  }
};

class SyntheticSource : public WeightSource {
 public:
  SyntheticSource(const Model& model, std::uint64_t seed) : seed_(seed) {
    generators_.reserve(model.parameters.size());
    for (const ParameterRule& rule : model.parameters) {
      const std::string& name = rule.info.name;
      generators_.push_back({mix(seed) ^ XXH3_64bits(name.data(), name.size()), element_shape(rule.info)});
    }
  }

  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override {
    if (destination.empty()) return;
    const Generator& generator = generators_[parameter];
    // A word that the range cuts at its start or end is made whole and copied in part.
    const auto partial = [&](std::uint64_t at, std::size_t count) {
      std::array<std::byte, 8> whole;
      generator.words(at / 8, whole.data(), 1);
      std::memcpy(destination.data(), whole.data() + at % 8, count);
      destination = destination.subspan(count);
    };
    if (offset % 8 != 0) {
      const std::size_t head = std::min<std::size_t>(destination.size(), 8 - offset % 8);
      partial(offset, head);
      offset += head;
    }
    const std::size_t words = destination.size() / 8;
    generator.words(offset / 8, destination.data(), words);
    destination = destination.subspan(8 * words);
    if (!destination.empty()) partial(offset + 8 * words, destination.size());
  }
  std::string describe() const override { return fmt::format("synth:{}", seed_); }

 private:
  std::uint64_t seed_;
  std::vector<Generator> generators_;
};

}  // namespace

std::unique_ptr<WeightSource> make_checkpoint_source(const Model& model, Checkpoint checkpoint) {
  return std::make_unique<CheckpointSource>(model, std::move(checkpoint));
}

std::unique_ptr<WeightSource> make_synthetic_source(const Model& model, std::uint64_t seed) {
  return std::make_unique<SyntheticSource>(model, seed);
}

std::unique_ptr<WeightSource> make_source(const Model& model, const std::string& spec) {
  if (spec == "synth") return make_synthetic_source(model, 1);
  constexpr std::string_view prefix = "synth:";
  if (!spec.starts_with(prefix)) return make_checkpoint_source(model, Checkpoint::open(spec));
  std::uint64_t seed = 0;
  const char* const end = spec.data() + spec.size();
  const auto [rest, status] = std::from_chars(spec.data() + prefix.size(), end, seed);
  if (status != std::errc() || rest != end) {
    throw Error(ExitCode::usage, fmt::format("'{}' names no seed", printable(spec)), "write it like synth:7");
  }
  return make_synthetic_source(model, seed);
}

}  // namespace weightcast
