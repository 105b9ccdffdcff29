// How fast a GPU makes, checks and applies deltas of a model with the shapes of Llama 3.1 8B: the median of 20 runs of
// each, from the call until the stream is done, and what at least has to be read and written in that time.
//
//     delta_speed [layers (32)]
//
// Two versions of the weights and a tenth of one for entries must fit: 38 GB with 32 layers, 8 GB with 2.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t row_units = 4096;  // of every parameter, so that all blocks are whole

/// One contiguous run for each parameter.
std::vector<DeltaRun> llama_runs(int layers) {
  std::vector<std::uint64_t> rows{128'256};
  for (int layer = 0; layer < layers; ++layer) {
    rows.insert(rows.end(), {1, 4096, 1024, 1024, 4096, 1, 14'336, 14'336, 14'336});
  }
  rows.push_back(1);
  rows.push_back(128'256);
  std::vector<DeltaRun> runs;
  std::uint64_t block = 0;
  for (const auto of : rows) {
    const auto first_byte = block * delta_block_units * delta_unit_bytes, units = of * row_units;
    runs.push_back({.first_block = block,
                    .source = first_byte,
                    .source_pitch = units * delta_unit_bytes,
                    .slot = first_byte,
                    .slot_pitch = units * delta_unit_bytes,
                    .parameter_pitch = units * delta_unit_bytes,
                    .row_units = units,
                    .rows = 1,
                    .parameter_index = runs.size()});
    block += runs.back().block_count();
  }
  return runs;
}

class Memory {
 public:
  explicit Memory(std::uint64_t size_bytes)
      : buffer_(Buffer::allocate({MemoryKind::cuda, 0}, size_bytes, false, "a measurement")) {}
  template <typename Value>
  explicit Memory(const std::vector<Value>& values) : Memory(values.size() * sizeof(Value)) {
    write_region(buffer_.region(), 0, std::as_bytes(std::span(values)));
  }
  std::byte* data() const { return buffer_.region().data; }
  template <typename Value>
  Value* as() const {
    return reinterpret_cast<Value*>(data());
  }
  template <typename Value>
  Value read(std::uint64_t index) const {
    Value value;
    read_region(buffer_.region(), index * sizeof(Value), std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

 private:
  Buffer buffer_;
};

class Speed {
 public:
  explicit Speed(int layers)
      : runs_(llama_runs(layers)),
        blocks_(runs_.back().first_block + runs_.back().block_count()),
        weights_(blocks_ * delta_block_units * delta_unit_bytes),
        run_list_(runs_),
        before_(weights_),
        after_(weights_),
        marks_(weights_ / 16),
        starts_((blocks_ + 1) * sizeof(std::uint64_t)),
        entries_(capacity() * sizeof(DeltaEntry)),
        scratch_(gpu::encode_scratch_bytes(blocks_)),
        sums_(2 * runs_.size() * sizeof(std::uint64_t)),
        bad_(sizeof(std::uint32_t)),
        found_(2 * sizeof(std::uint64_t)) {
    fmt::print("{}: {:.2f} GB of weights, {} blocks\n", gpu::properties(0).name, gigabytes(weights_), blocks_);
    fmt::print("{:<40} {:>9} {:>12} {:>18}\n", "", "ms", "GB/s moved", "GB/s of weights");
    gpu::generate({1, 2, 3}, {0, weights_, weights_, weights_, 1}, before_.data(), stream_);
    gpu::copy(after_.data(), before_.data(), weights_, stream_);
    finish();
  }

  void changes(double share) {
    fill(share);
    const auto entry_bytes = 4 * static_cast<double>(count_), start_bytes = 8 * static_cast<double>(blocks_);
    // Of the sectors of 32 bytes those that have a change.
    const auto touched = static_cast<double>(weights_) * (1 - std::pow(1 - share, 16)), all = weights();
    gpu::copy(after_.data(), before_.data(), weights_, stream_);
    gpu::apply_delta(runs(), starts(), entries(), false, after_.data(), nullptr, bad_.as<std::uint32_t>(), stream_);
    gpu::zero(marks_.data(), weights_ / 16, stream_);
    const auto name = [&](const char* what) { return fmt::format("{}, {:.1f} % changed", what, 100 * share); };
    measure(name("mark"), 2 * all,
            [&] { gpu::mark(before_.data(), after_.data(), weights_, marks_.as<std::uint32_t>(), stream_); });
    measure(name("encode"), all / 8 + touched + entry_bytes + start_bytes, [&] {
      gpu::encode(runs(), marks_.as<std::uint32_t>(), after_.data(), starts(), entries(), capacity(), scratch_.data(),
                  stream_);
    });
    const auto found = starts_.read<std::uint64_t>(blocks_);
    fmt::print("{:<40} {} of {} given\n", "  entries", found, count_);
    measure(name("check"), entry_bytes + start_bytes,
            [&] { gpu::check_delta(runs(), starts(), entries(), capacity(), bad_.as<std::uint32_t>(), stream_); });
    if (bad_.read<std::uint32_t>(0) != 0) fmt::print("WRONG: what was encoded is refused\n");
    measure(name("check starts"), start_bytes,
            [&] { gpu::check_starts(runs(), starts(), capacity(), bad_.as<std::uint32_t>(), stream_); });
    for (const std::uint64_t pieces : {1, 16}) {
      for (const bool digests : {false, true}) {
        const auto what = [&](const char* of) {
          return name(fmt::format("{}{} in {}", of, digests ? ", digest," : "", pieces).c_str());
        };
        auto* const sums = digests ? sums_.as<std::uint64_t>() : nullptr;
        measure(what("apply"), 2 * touched + entry_bytes + start_bytes, [&] {
          in_pieces(pieces, [&](const gpu::DeltaPiece& piece) {
            gpu::apply_piece(piece, after_.data(), sums, bad_.as<std::uint32_t>(), stream_);
          });
        });
        measure(what("patch"), 2 * all + entry_bytes + start_bytes, [&] {
          in_pieces(pieces, [&](const gpu::DeltaPiece& piece) {
            gpu::patch_and_digest(piece, before_.data(), after_.data(), sums, bad_.as<std::uint32_t>(), stream_);
          });
        });
      }
    }
    if (bad_.read<std::uint32_t>(0) != 0) fmt::print("WRONG: what was encoded is refused\n");
    for (const bool swap : {false, true}) {
      for (const bool digests : {false, true}) {
        const auto what = fmt::format("apply{}{}", swap ? ", swap" : "", digests ? ", digest" : "");
        measure(name(what.c_str()), 2 * touched + (swap ? 2 : 1) * entry_bytes + start_bytes, [&] {
          gpu::apply_delta(runs(), starts(), entries(), swap, after_.data(),
                           digests ? sums_.as<std::uint64_t>() : nullptr, bad_.as<std::uint32_t>(), stream_);
        });
      }
    }
  }

  void copies() {
    const auto all = weights();
    measure("copy", 2 * all, [&] { gpu::copy(after_.data(), before_.data(), weights_, stream_); });
    // As a shard's segments are cut: 128 KiB by eight warps.
    constexpr std::uint64_t row_bytes = 16 << 10, rows = 8;
    std::vector<gpu::DigestTask> tasks;
    for (std::uint64_t at = 0; at < weights_; at += row_bytes * rows) {
      const auto here = std::min(rows, (weights_ - at) / row_bytes);
      if (here == 0) break;
      tasks.push_back({at, at, row_bytes, row_bytes, at, row_bytes, row_bytes, static_cast<std::uint32_t>(here), 0, 0});
    }
    const Memory list(tasks);
    for (const auto rounding : {std::optional<NarrowFloat>(), std::optional(NarrowFloat::bf16)}) {
      // Floats of half of the weights are as many bytes as all of them.
      const auto count = rounding ? tasks.size() / 2 : tasks.size();
      for (const bool marked : {false, true}) {
        gpu::zero(marks_.data(), weights_ / 16, stream_);
        const gpu::CopySource source{before_.data(), 0, rounding, marked ? marks_.as<std::uint32_t>() : nullptr};
        const auto what = fmt::format("copy_and_digest{}{}", rounding ? ", to bf16" : "", marked ? ", marks" : "");
        const auto moved = rounding ? (marked ? 2.0 : 1.5) : (marked ? 3.0 : 2.0);
        measure(what, moved * all, [&] {
          gpu::copy_and_digest(list.as<gpu::DigestTask>(), count, source, after_.data(), sums_.as<std::uint64_t>(),
                               gpu::Share::all, stream_);
        });
      }
    }
  }

 private:
  static double gigabytes(std::uint64_t bytes) { return static_cast<double>(bytes) / 1e9; }
  double weights() const { return static_cast<double>(weights_); }
  std::uint64_t capacity() const { return weights_ / 16; }  // an eighth of the units
  gpu::DeltaRuns runs() const { return {run_list_.as<DeltaRun>(), runs_.size(), blocks_}; }
  std::uint64_t* starts() const { return starts_.as<std::uint64_t>(); }
  DeltaEntry* entries() const { return entries_.as<DeltaEntry>(); }
  void finish() const { stream_.synchronize(Deadline::after(60), "a measurement"); }

  template <typename Work>
  void measure(const std::string& what, double moved_bytes, const Work& work) const {
    finish();
    std::vector<double> times;
    for (int i = 0; i < 22; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      work();
      finish();
      if (i >= 2) times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    std::ranges::nth_element(times, times.begin() + 10);
    const auto seconds = times[10];
    fmt::print("{:<40} {:>9.3f} {:>12.0f} {:>18.0f}\n", what, 1e3 * seconds, moved_bytes / seconds / 1e9,
               weights() / seconds / 1e9);
    std::fflush(stdout);
  }

  /// The stream cut into so many pieces of alike size.
  template <typename Work>
  void in_pieces(std::uint64_t pieces, const Work& work) const {
    for (std::uint64_t i = 0; i < pieces; ++i) {
      work(gpu::DeltaPiece{runs(), starts(), entries(), count_ * i / pieces,
                           i + 1 == pieces ? gpu::every_entry : count_ * (i + 1) / pieces, blocks_ / pieces + 1,
                           found_.as<std::uint64_t>()});
    }
  }

  /// A stream that changes that share of the units: the same 512 blocks again and again.
  void fill(double share) {
    constexpr std::uint64_t pattern_blocks = 512;
    std::mt19937_64 random(5);
    const auto limit = static_cast<std::uint64_t>(share * 4294967296.0);
    std::vector<DeltaEntry> pattern;
    std::vector<std::uint64_t> pattern_starts{0}, starts{0};
    for (std::uint64_t block = 0; block < pattern_blocks; ++block) {
      for (std::uint64_t unit = 0; unit < delta_block_units; ++unit) {
        const auto bits = random();
        if (bits >> 32 < limit) pattern.push_back({static_cast<std::uint16_t>(unit), static_cast<std::uint16_t>(bits)});
      }
      pattern_starts.push_back(pattern.size());
    }
    for (std::uint64_t block = 0; block < blocks_; block += pattern_blocks) {
      const auto here = std::min(pattern_blocks, blocks_ - block);
      const auto base = starts.back();
      for (std::uint64_t b = 1; b <= here; ++b) starts.push_back(base + pattern_starts[b]);
      gpu::upload(0, reinterpret_cast<std::byte*>(entries() + base), reinterpret_cast<const std::byte*>(pattern.data()),
                  pattern_starts[here] * sizeof(DeltaEntry));
    }
    gpu::upload(0, starts_.data(), reinterpret_cast<const std::byte*>(starts.data()), 8 * starts.size());
    count_ = starts.back();
  }

  std::vector<DeltaRun> runs_;
  std::uint64_t blocks_, weights_, count_ = 0;
  gpu::Stream stream_{0};
  Memory run_list_, before_, after_, marks_, starts_, entries_, scratch_, sums_, bad_, found_;
};

}  // namespace
}  // namespace weightcast

int main(int count, char** arguments) {
  if (weightcast::gpu::count() == 0) {
    fmt::print("{}\n", weightcast::gpu::why_none());
    return 77;
  }
  try {
    weightcast::Speed speed(count > 1 ? std::atoi(arguments[1]) : 32);
    for (const double share : {0.001, 0.02, 0.1}) speed.changes(share);
    speed.copies();
  } catch (const std::exception& error) {
    fmt::print("{}\n", error.what());
    return 1;
  }
}
