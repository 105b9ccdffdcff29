#include "weightcast/trainer/weight_source.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "weightcast/core/error.hpp"
#include "weightcast/device/elements.hpp"

namespace weightcast {
namespace {

using ::testing::HasSubstr;

Model tiny(DType dtype = DType::BF16) {
  ModelConfig config = load_model_config("tiny");
  config.dtype = dtype;
  return build_model(config);
}

std::vector<std::byte> read(const WeightSource& source, std::size_t parameter, std::uint64_t offset,
                            std::size_t count) {
  std::vector<std::byte> bytes(count);
  source.read(parameter, offset, bytes);
  return bytes;
}

// Pins the definition: these bits are what synth:1 means, and scripts may rely on them.
TEST(SyntheticSource, PinnedBits) {
  const Model model = tiny();
  const auto source = make_synthetic_source(model, 1);
  const auto parameter = static_cast<std::size_t>(model.find("model.norm.weight"));
  const auto bytes = read(*source, parameter, 0, 16);
  std::array<std::uint64_t, 2> words{};
  std::memcpy(words.data(), bytes.data(), 16);
  EXPECT_EQ(words[0], 0x37b9bd16bd353f3au);
  EXPECT_EQ(words[1], 0x387dbd653b4d3a6cu);
  EXPECT_EQ(source->describe(), "synth:1");
}

TEST(SyntheticSource, AnyRangeHasTheSameBits) {
  const Model model = tiny();
  const auto source = make_synthetic_source(model, 7);
  const auto whole = read(*source, 1, 0, 64);
  for (std::size_t offset = 0; offset < 40; ++offset) {
    for (std::size_t count = 0; count <= 24; ++count) {
      const std::vector<std::byte> expected(whole.begin() + static_cast<std::ptrdiff_t>(offset),
                                            whole.begin() + static_cast<std::ptrdiff_t>(offset + count));
      ASSERT_EQ(read(*source, 1, offset, count), expected) << offset << " " << count;
    }
  }
}

TEST(SyntheticSource, GeneratorsMakeTheSameBytes) {
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32, DType::F64}) {
    const Model model = tiny(dtype);
    const auto source = make_synthetic_source(model, 11);
    ASSERT_EQ(source->generators().size(), model.parameters.size());
    for (std::size_t p = 0; p < model.parameters.size(); ++p) {
      const auto bytes = read(*source, p, 3, 200);
      for (std::size_t i = 0; i < bytes.size(); ++i)
        ASSERT_EQ(static_cast<std::uint8_t>(bytes[i]), source->generators()[p].byte(3 + i)) << name(dtype) << " " << i;
    }
  }
  std::vector<std::byte> zeros(21, std::byte{1});
  generate(WordGenerator{}, 5, zeros);
  EXPECT_EQ(zeros, std::vector<std::byte>(21));
}

TEST(SyntheticSource, ChangesAShareOfTheElements) {
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32, DType::F64}) {
    const Model model = tiny(dtype);
    const auto width = static_cast<std::size_t>(bits(dtype) / 8);
    constexpr std::size_t count = 12'800;
    ASSERT_GE(model.parameters[0].info.elements().value(), count);
    const auto before = read(*make_synthetic_source(model, 5), 0, 0, count * width);
    for (const double share : {0.001, 0.02, 0.5, 1.0}) {
      const auto source = make_synthetic_source(model, 5, share);
      const auto after = read(*source, 0, 0, count * width);
      EXPECT_EQ(after, read(*make_synthetic_source(model, 5, share), 0, 0, count * width));
      for (std::size_t i = 0; i < after.size(); ++i)
        ASSERT_EQ(static_cast<std::uint8_t>(after[i]), source->generators()[0].byte(i)) << name(dtype) << " " << i;
      double elements = 0, units = 0;
      std::array<double, 4> lanes{};
      for (std::size_t i = 0; i < count; ++i) {
        const bool changed = !std::equal(&before[i * width], &before[i * width] + width, &after[i * width]);
        elements += changed ? 1 : 0;
        lanes[i % 4] += changed ? 1 : 0;
        for (std::size_t u = 0; u < width / 2; ++u)
          units +=
              std::equal(&before[i * width + 2 * u], &before[i * width + 2 * u] + 2, &after[i * width + 2 * u]) ? 0 : 1;
        ASSERT_TRUE(std::isfinite(to_float(dtype, &after[i * width]).value()));
      }
      const double deviation = std::sqrt(count * share * (1 - share));
      EXPECT_NEAR(elements, count * share, 5 * deviation + 0.5) << name(dtype) << " " << share;
      for (const double lane : lanes) EXPECT_NEAR(lane, count / 4 * share, 5 * deviation / 2 + 0.5) << name(dtype);
      EXPECT_EQ(units, elements) << name(dtype);  // of a wider element one half or quarter
    }
  }
  const Model model = tiny();
  EXPECT_EQ(make_synthetic_source(model, 5, 0.02)->describe(), "synth:5, 2 % changed");
}

TEST(SyntheticSource, LooksLikeWeightsInEveryFloatType) {
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32, DType::F64}) {
    const Model model = tiny(dtype);
    const auto source = make_synthetic_source(model, 3);
    const auto width = static_cast<std::size_t>(bits(dtype) / 8);
    const auto bytes = read(*source, 0, 0, 4096 * width);
    double sum = 0;
    for (std::size_t i = 0; i < 4096; ++i) {
      const float value = to_float(dtype, bytes.data() + i * width).value();
      ASSERT_LT(std::abs(value), 1.0f) << name(dtype);
      ASSERT_GE(std::abs(value), std::ldexp(1.0f, -16)) << name(dtype);
      sum += value;
    }
    EXPECT_LT(std::abs(sum / 4096), 0.02) << name(dtype);
  }
}

TEST(SyntheticSource, SeedsAndNamesMakeOtherBits) {
  const Model model = tiny();
  const auto one = make_synthetic_source(model, 1), two = make_synthetic_source(model, 2);
  const auto same_elements = [](const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
    int same = 0;
    for (std::size_t i = 0; i < a.size(); i += 2) same += a[i] == b[i] && a[i + 1] == b[i + 1] ? 1 : 0;
    return same;
  };
  const auto bytes = read(*one, 0, 0, 16384);
  EXPECT_EQ(bytes, read(*one, 0, 0, 16384));
  EXPECT_LT(same_elements(bytes, read(*two, 0, 0, 16384)), 20);  // 2 of 8192 expected
  EXPECT_LT(same_elements(bytes, read(*one, 3, 0, 16384)), 20);
}

TEST(SyntheticSource, Specs) {
  const Model model = tiny();
  EXPECT_EQ(make_source(model, "synth")->describe(), "synth:1");
  EXPECT_EQ(make_source(model, "synth:18446744073709551615")->describe(), "synth:18446744073709551615");
  for (const char* bad : {"synth:", "synth:x", "synth:1x", "synth:-1", "synth:18446744073709551616"}) {
    EXPECT_THROW(make_source(model, bad), Error) << bad;
  }
}

/// Writes the tensors of synth:5 (and `extra`) and gives back the path of the checkpoint.
class CheckpointFolder {
 public:
  CheckpointFolder(const Model& model, bool with_head, bool head_equal)
      : path_(::testing::TempDir() + "weightcast_weight_source_test") {
    const auto source = make_synthetic_source(model, 5);
    CheckpointContent content;
    for (const auto& rule : model.parameters) content.tensors.push_back(rule.info);
    const auto embedding = static_cast<std::size_t>(model.find("model.embed_tokens.weight"));
    if (with_head) {
      content.tensors.push_back(content.tensors[embedding]);
      content.tensors.back().name = "lm_head.weight";
    }
    content.fill = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
      const bool head = index == model.parameters.size();
      source->read(head ? embedding : index, offset, destination);
      if (head && !head_equal) destination.back() ^= std::byte{1};
    };
    write_checkpoint(path_, content, 1u << 30, "", 1);
  }
  ~CheckpointFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

Model tied_model() {
  ModelConfig config = load_model_config("tiny");
  config.tied_embeddings = true;
  return build_model(config);
}

TEST(CheckpointSource, GivesTheBytesOfTheCheckpoint) {
  const Model model = tied_model();
  const CheckpointFolder folder(model, true, true);
  const auto source = make_source(model, folder.path());
  EXPECT_TRUE(source->generators().empty());
  const auto synthetic = make_synthetic_source(model, 5);
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    ASSERT_EQ(read(*source, i, 2, 100), read(*synthetic, i, 2, 100)) << model.parameters[i].info.name;
  }
  EXPECT_EQ(source->describe(), "checkpoint " + folder.path());
}

TEST(CheckpointSource, ATiedHeadMustEqualTheEmbedding) {
  const Model model = tied_model();
  const CheckpointFolder folder(model, true, false);
  try {
    make_source(model, folder.path());
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.what(), HasSubstr("lm_head.weight differs"));
  }
}

/// Writes a checkpoint of tensors of these types in turn, of the values of synth:5 in F32.
Checkpoint mixed_checkpoint(const Model& model, const std::string& path, const std::vector<DType>& types) {
  const auto source = make_synthetic_source(tiny(DType::F32), 5);
  CheckpointContent content;
  for (const auto& rule : model.parameters) {
    content.tensors.push_back(rule.info);
    content.tensors.back().dtype = types[content.tensors.size() % types.size()];
  }
  content.fill = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    const auto dtype = content.tensors[index].dtype;
    if (dtype == DType::F32) return source->read(index, offset, destination);
    const auto wide = read(*source, index, 2 * offset, 2 * destination.size());
    narrow(dtype == DType::BF16 ? NarrowFloat::bf16 : NarrowFloat::f16, destination.data(), wide.data(),
           destination.size() / 2);
  };
  write_checkpoint(path, content, 1u << 30, "", 1);
  return Checkpoint::open(path);
}

// Against the values that the elements have, one at a time.
TEST(CheckpointSource, OtherFloatTypesAreRoundedInAnyRange) {
  const std::string path = ::testing::TempDir() + "weightcast_weight_source_test";
  for (const auto to : {DType::BF16, DType::F16, DType::F32}) {
    const Model model = tiny(to);
    const auto checkpoint = mixed_checkpoint(model, path, {DType::F32, DType::F16, DType::BF16});
    const CheckpointSource source(model, Checkpoint::open(path));
    ASSERT_EQ(source.notes().size(), 1u);
    EXPECT_THAT(source.notes().front(), HasSubstr(to == DType::F32 ? "widened to F32" : "rounded to the nearest"));
    const auto width = static_cast<std::size_t>(bits(to) / 8);
    for (std::size_t p = 0; p < 6; ++p) {
      const auto index = static_cast<std::size_t>(checkpoint.find(model.parameters[p].info.name));
      const auto& stored = checkpoint.tensors()[index];
      const std::size_t count = *stored.elements();
      std::vector<std::byte> raw(*stored.size_bytes()), expected(count * width);
      checkpoint.read(index, 0, raw);
      for (std::size_t i = 0; i < count; ++i) {
        const float value = *to_float(stored.dtype, raw.data() + i * raw.size() / count);
        std::uint32_t word = 0;
        std::memcpy(&word, &value, 4);
        const std::uint16_t half = to == DType::BF16 ? bf16_of(word) : f16_of(word);
        std::memcpy(expected.data() + i * width,
                    to == DType::F32 ? static_cast<void*>(&word) : static_cast<const void*>(&half), width);
      }
      ASSERT_EQ(read(source, p, 0, expected.size()), expected) << stored.describe();
      for (std::size_t offset = 0; offset < 9; ++offset) {
        for (std::size_t size = 0; size < 9; ++size) {
          const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(offset);
          ASSERT_EQ(read(source, p, offset, size),
                    std::vector<std::byte>(begin, begin + static_cast<std::ptrdiff_t>(size)));
        }
      }
    }
  }
  std::filesystem::remove_all(path);
}

TEST(CheckpointSource, AnotherModelIsRefused) {
  const Model model = tied_model();
  const CheckpointFolder folder(model, false, false);
  EXPECT_THROW(make_source(build_model(load_model_config("smollm2-135m")), folder.path()), Error);
}

}  // namespace
}  // namespace weightcast
