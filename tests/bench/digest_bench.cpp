#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "weightcast/verify/digest_kernels.hpp"

/// Throughput of the digest kernels: contiguous data in cache and in memory, and column shards of short rows.
namespace {

using namespace weightcast;

/// `size` bytes at a 64-byte boundary, where slots and sources lie too.
class Bytes {
 public:
  explicit Bytes(std::size_t size) : storage_(size + 64) {
    void* start = storage_.data();
    std::size_t space = storage_.size();
    data_ = static_cast<std::byte*>(std::align(64, size, start, space));
    for (std::size_t i = 0; i < size; ++i) data_[i] = static_cast<std::byte>(i * 131 + (i >> 8));
  }
  const std::byte* data() const { return data_; }

 private:
  std::vector<std::byte> storage_;
  std::byte* data_;
};

void contiguous(benchmark::State& state, DigestKernel kernel) {
  const auto size = static_cast<std::size_t>(state.range(0));
  const Bytes data(size);
  for (auto _ : state) benchmark::DoNotOptimize(digest_rows_with(kernel, data.data(), size, size, 1, 0, size));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

/// A column shard that lies contiguous in its engine tensor: rows of range(0) bytes, each a third of the parameter's
/// row.
void rows(benchmark::State& state, DigestKernel kernel, std::uint64_t total) {
  const auto row = static_cast<std::uint64_t>(state.range(0));
  const Bytes data(total);
  for (auto _ : state) {
    benchmark::DoNotOptimize(digest_rows_with(kernel, data.data(), row, row, total / row, row, 3 * row));
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(total / row * row));
}

}  // namespace

int main(int argc, char** argv) {
  for (const NamedDigestKernel& kernel : digest_kernels()) {
    if (!kernel.usable) continue;
    const std::string name = kernel.name;
    benchmark::RegisterBenchmark(("contiguous/" + name).c_str(), contiguous, kernel.run)
        ->Arg(512 << 10)
        ->Arg(256 << 20);
    for (const std::uint64_t total : {std::uint64_t{512} << 10, std::uint64_t{256} << 20}) {
      benchmark::RegisterBenchmark(("rows/" + name + "/" + std::to_string(total >> 10) + "KiB").c_str(), rows,
                                   kernel.run, total)
          ->Arg(128)
          ->Arg(384)
          ->Arg(1000)
          ->Arg(1024)
          ->Arg(1536)
          ->Arg(4096)
          ->Arg(8192);
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
