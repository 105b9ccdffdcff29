// Quantisation on a GPU: the host's bits, for any shape and alignment, and nothing beside them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "harness/random_matrix.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"

namespace weightcast {
namespace {

using harness::RandomMatrix;

class GpuQuantize : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
  }
  static Buffer on_gpu(std::span<const std::byte> bytes) {
    auto buffer = Buffer::allocate({MemoryKind::cuda, 0}, bytes.size(), false, "a test");
    write_region(buffer.region(), 0, bytes);
    return buffer;
  }
  static void expect_the_hosts_bits(RandomMatrix matrix) {
    gpu::Stream stream(0);
    const auto elements = on_gpu(matrix.elements), fp8 = on_gpu(matrix.fp8),
               scales = on_gpu(std::as_bytes(std::span(matrix.scales)));
    gpu::quantize(matrix.kind, matrix.source(elements.region().data),
                  matrix.destination(fp8.region().data, reinterpret_cast<float*>(scales.region().data)), stream);
    stream.synchronize(Deadline::after(30), "quantising");
    quantize(matrix.kind, matrix.source(matrix.elements.data()),
             matrix.destination(matrix.fp8.data(), matrix.scales.data()));
    const HostView bytes(fp8.region()), held_scales(scales.region());
    ASSERT_EQ(std::memcmp(held_scales.bytes().data(), matrix.scales.data(), matrix.scales.size() * sizeof(float)), 0)
        << matrix.rows << " x " << matrix.columns;
    for (std::size_t i = 0; i < matrix.fp8.size(); ++i)
      ASSERT_EQ(bytes.bytes()[i], matrix.fp8[i]) << matrix.rows << " x " << matrix.columns << " at " << i;
  }
};

TEST_F(GpuQuantize, AnyShapeAndAlignment) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300; ++i) {
    expect_the_hosts_bits(RandomMatrix(random, 300, 1500));
    if (HasFatalFailure()) return;
  }
}

TEST_F(GpuQuantize, RowsThatNoBlockOfThreadsKeeps) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 20; ++i) {
    expect_the_hosts_bits(RandomMatrix(random, 3, 100'000));
    if (HasFatalFailure()) return;
  }
}

/// WEIGHTCAST_QUANTIZE_MATRICES says how many, of about 7 million elements each (2).
TEST_F(GpuQuantize, ManyElements) {
  const char* const given = std::getenv("WEIGHTCAST_QUANTIZE_MATRICES");
  const int matrices = given != nullptr ? std::atoi(given) : 2;
  std::mt19937_64 random(3);
  for (int i = 0; i < matrices; ++i) {
    expect_the_hosts_bits(RandomMatrix(random, 4096, 8192));
    if (HasFatalFailure()) return;
  }
}

TEST_F(GpuQuantize, NothingForNoElements) {
  gpu::Stream stream(0);
  gpu::quantize(ScaleKind::block, {nullptr, WideFloat::bf16, 0, 8, 8}, {nullptr, 8, nullptr, 1}, stream);
  gpu::quantize(ScaleKind::channel, {nullptr, WideFloat::bf16, 8, 0, 0}, {nullptr, 0, nullptr, 1}, stream);
  stream.synchronize(Deadline::after(10), "nothing");
}

}  // namespace
}  // namespace weightcast
