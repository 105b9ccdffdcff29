// A training loop's tensors on host and GPU into source regions on either: the same bytes as the host makes of them.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "weightcast/core/error.hpp"
#include "weightcast/trainer/trainer.hpp"

namespace weightcast {
namespace {

std::vector<std::byte> random_bytes(std::uint64_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

class GpuFill : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
  }
  static inline const Placement on_gpu{MemoryKind::cuda, 0};
};

TEST_F(GpuFill, TheKernelRoundsAsTheHostDoes) {
  constexpr std::uint64_t most = 3'000'003;
  const auto source = random_bytes(4 * most, 1);
  const auto from = Buffer::allocate(on_gpu, source.size(), false, "a test");
  const auto to = Buffer::allocate(on_gpu, 2 * most + 16, false, "a test");
  write_region(from.region(), 0, source);
  gpu::Stream stream(0);
  for (const auto format : {NarrowFloat::bf16, NarrowFloat::f16}) {
    for (const std::uint64_t count : {0ULL, 1ULL, 7ULL, 8ULL, 9ULL, 4095ULL, 70'001ULL, 2'500'000ULL, 3'000'000ULL}) {
      for (const std::uint64_t skip : {0, 1, 3}) {  // elements: 0 is the aligned way
        std::vector<std::byte> expected(2 * most + 16, std::byte{0x5a}), held(expected.size());
        write_region(to.region(), 0, expected);
        gpu::narrow(format, to.region().data + 2 * skip, from.region().data + 4 * skip, count, stream);
        stream.synchronize(Deadline::after(10), "a test");
        narrow(format, expected.data() + 2 * skip, source.data() + 4 * skip, count);
        read_region(to.region(), 0, held);
        ASSERT_EQ(std::memcmp(held.data(), expected.data(), held.size()), 0) << count << " " << skip;
      }
    }
  }
}

TEST_F(GpuFill, FromAndToEitherMemory) {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 72;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 18;
  config.intermediate = 40;
  config.vocabulary = 8011;
  for (const auto wire : {DType::BF16, DType::F16, DType::F32}) {
    config.dtype = wire;
    const auto plan = make_plan(build_model(config), 1, 1);
    for (const auto& weights : {Placement{}, on_gpu}) {
      Trainer trainer(plan, weights);
      trainer.reserve();
      for (int round = 0; round < 3; ++round) {
        std::vector<std::vector<std::byte>> data;
        std::vector<Buffer> buffers;
        std::vector<TrainingTensor> tensors;
        for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
          // Masters and copies, on host and GPU, in turn.
          TrainingTensor tensor{plan.model.parameters[p].info, nullptr, {}};
          if ((p + static_cast<std::size_t>(round)) % 3 != 0) tensor.info.dtype = DType::F32;
          data.push_back(random_bytes(*tensor.info.size_bytes(), p + 100));
          tensor.data = data.back().data();
          if (p / 2 % 2 == 0) {
            tensor.placement = on_gpu;
            buffers.push_back(Buffer::allocate(on_gpu, data.back().size(), false, "a test"));
            write_region(buffers.back().region(), 0, data.back());
            tensor.data = buffers.back().region().data;
          }
          tensors.push_back(tensor);
        }
        trainer.fill(0, tensors);
        const HostView held(trainer.source(0));
        for (std::size_t p = 0; p < tensors.size(); ++p) {
          auto expected = data[p];
          if (tensors[p].info.dtype != wire) {
            expected.resize(data[p].size() / 2);
            narrow(wire == DType::BF16 ? NarrowFloat::bf16 : NarrowFloat::f16, expected.data(), data[p].data(),
                   data[p].size() / 4);
          }
          ASSERT_EQ(std::memcmp(held.bytes().data() + plan.source_offsets[p], expected.data(), expected.size()), 0)
              << tensors[p].info.describe() << " " << name(wire) << " " << p;
        }
      }
    }
  }
}

TEST_F(GpuFill, AnotherGpuIsRefusedByName) {
  const auto plan = make_plan(build_model(load_model_config("tiny")), 1, 1);
  Trainer trainer(plan, on_gpu);
  trainer.reserve();
  std::vector<TrainingTensor> tensors;
  const auto memory = Buffer::allocate(on_gpu, plan.source_bytes, false, "a test");
  for (const auto& rule : plan.model.parameters) tensors.push_back({rule.info, memory.region().data, on_gpu});
  tensors.back().placement.gpu = 1;
  try {
    trainer.fill(0, tensors);
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(tensors.back().info.name + " is on another GPU"), std::string::npos);
  }
}

}  // namespace
}  // namespace weightcast
