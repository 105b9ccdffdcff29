#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "weightcast/device/memory.hpp"

/// What a test has on a GPU: a stream, and values.
namespace weightcast::harness {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
    stream_ = gpu::Stream(0);
  }
  void finish() const { stream_.synchronize(Deadline::after(30), "a test"); }

  gpu::Stream stream_;
};

/// By an allocation of their own, so that the emulation sees what reads or writes behind them.
template <typename Value>
class Held {
 public:
  explicit Held(std::span<const Value> values)
      : count_(values.size()),
        memory_(
            Buffer::allocate({MemoryKind::cuda, 0}, std::max<std::uint64_t>(values.size_bytes(), 1), false, "a test")) {
    write(values);
  }
  explicit Held(const std::vector<Value>& values) : Held(std::span<const Value>(values)) {}

  Value* data() const { return reinterpret_cast<Value*>(memory_.region().data); }
  void write(std::span<const Value> values) const {
    if (!values.empty()) write_region(memory_.region(), 0, std::as_bytes(values));
  }
  std::vector<Value> read() const {
    std::vector<Value> values(count_);
    if (count_ != 0) read_region(memory_.region(), 0, std::as_writable_bytes(std::span(values)));
    return values;
  }

 private:
  std::size_t count_;
  Buffer memory_;
};

template <typename Value>
std::vector<Value> random_values(std::mt19937_64& random, std::size_t count) {
  std::vector<Value> values(count);
  for (auto& value : values) value = static_cast<Value>(random());
  return values;
}

}  // namespace weightcast::harness
