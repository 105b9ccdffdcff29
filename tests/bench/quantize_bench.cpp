#include <benchmark/benchmark.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/device/quantize.hpp"

/// Throughput of quantisation, in bytes of input: a matrix in cache and one in memory, in one thread; and, where there
/// is a GPU, on it.
namespace {

using namespace weightcast;

struct Case {
  ScaleKind kind;
  WideFloat type;
};

std::string name_of(const Case& c) {
  return std::string(c.kind == ScaleKind::block ? "block/" : "channel/") + (c.type == WideFloat::f32    ? "f32"
                                                                            : c.type == WideFloat::bf16 ? "bf16"
                                                                                                        : "f16");
}

/// Weights as they are: about normal.
std::vector<std::byte> weights(WideFloat type, std::uint64_t elements) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> some(1 << 16);
  for (auto& value : some) value = normal(random);
  std::vector<std::byte> bytes(elements * width_bytes(type));
  for (std::uint64_t i = 0; i < elements; ++i) {
    const auto bits = __builtin_bit_cast(std::uint32_t, some[i * 7 % some.size()]);
    const std::uint32_t held = type == WideFloat::f32 ? bits : type == WideFloat::bf16 ? bf16_of(bits) : f16_of(bits);
    std::memcpy(bytes.data() + i * width_bytes(type), &held, width_bytes(type));
  }
  return bytes;
}

struct Shape {
  std::uint64_t rows, columns;
  explicit Shape(const benchmark::State& state)
      : rows(static_cast<std::uint64_t>(state.range(0))), columns(static_cast<std::uint64_t>(state.range(1))) {}
  std::uint64_t elements() const { return rows * columns; }
  std::uint64_t scales(ScaleKind kind) const { return scale_rows(kind, rows) * scale_columns(kind, columns); }
};

void on_host(benchmark::State& state, const QuantizeKernel& kernel, Case c) {
  const Shape shape(state);
  const auto source = weights(c.type, shape.elements());
  std::vector<std::byte> to(shape.elements());
  std::vector<float> scales(shape.scales(c.kind));
  for (auto _ : state) {
    kernel.run(c.kind, {source.data(), c.type, shape.rows, shape.columns, shape.columns},
               {to.data(), shape.columns, scales.data(), scale_columns(c.kind, shape.columns)});
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(source.size()));
}

/// Several in a row, so that what starting and waiting costs is little of it.
void on_gpu(benchmark::State& state, Case c) {
  constexpr int in_a_row = 20;
  const Shape shape(state);
  const auto allocate = [](std::uint64_t size) {
    return Buffer::allocate({MemoryKind::cuda, 0}, size, false, "a measurement");
  };
  const auto content = weights(c.type, shape.elements());
  const auto source = allocate(content.size()), to = allocate(shape.elements()),
             scales = allocate(shape.scales(c.kind) * sizeof(float));
  write_region(source.region(), 0, content);
  const gpu::Stream stream(0);
  for (auto _ : state) {
    for (int i = 0; i < in_a_row; ++i)
      gpu::quantize(c.kind, {source.region().data, c.type, shape.rows, shape.columns, shape.columns},
                    {to.region().data, shape.columns, reinterpret_cast<float*>(scales.region().data),
                     scale_columns(c.kind, shape.columns)},
                    stream);
    stream.synchronize(Deadline::after(60), "quantising");
  }
  state.SetBytesProcessed(state.iterations() * in_a_row * static_cast<std::int64_t>(content.size()));
  state.counters["moved"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * in_a_row * static_cast<double>(content.size() + shape.elements()),
      benchmark::Counter::kIsRate);
}

}  // namespace

int main(int argc, char** argv) {
  const Case cases[] = {{ScaleKind::block, WideFloat::bf16},  {ScaleKind::block, WideFloat::f32},
                        {ScaleKind::block, WideFloat::f16},   {ScaleKind::channel, WideFloat::bf16},
                        {ScaleKind::channel, WideFloat::f32}, {ScaleKind::channel, WideFloat::f16}};
  for (const QuantizeKernel& kernel : quantize_kernels()) {
    if (!kernel.usable) continue;
    for (const auto& c : cases) {
      benchmark::RegisterBenchmark((name_of(c) + "/" + kernel.name).c_str(), on_host, kernel, c)
          ->Args({128, 512})
          ->Args({4096, 14336})
          ->Unit(benchmark::kMillisecond);
    }
  }
  if (gpu::count() > 0) {
    for (const auto& c : cases) {
      benchmark::RegisterBenchmark((name_of(c) + "/gpu").c_str(), on_gpu, c)
          ->Args({1024, 4096})
          ->Args({4096, 14336})
          ->Args({32768, 16384})
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
