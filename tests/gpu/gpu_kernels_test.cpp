// Kernels against the host: the same digests, the same copies, for aligned and odd shapes.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "harness/model_bytes.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/verify/gpu_digests.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {
namespace {

using harness::random_bytes;

class GpuKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
  }
  static Buffer on_gpu(std::span<const std::byte> bytes) {
    auto buffer = Buffer::allocate({MemoryKind::cuda, 0}, bytes.size(), false, "a test");
    write_region(buffer.region(), 0, bytes);
    return buffer;
  }
};

/// The trainer's and every engine rank's digests of a model of these sizes.
void expect_equal_digests(std::uint64_t hidden, std::uint64_t intermediate, std::uint64_t tp) {
  const ModelConfig c{.layers = 2,
                      .hidden = hidden,
                      .heads = 8,
                      .kv_heads = 2,
                      .head_dim = hidden / 8,
                      .intermediate = intermediate,
                      .vocabulary = 200};
  const auto plan = make_plan(build_model(c), tp, 1);
  const auto parameters = plan.model.parameters.size();
  const auto deadline = Deadline::after(30);

  std::mt19937_64 random(hidden * tp);
  std::vector<std::byte> source(plan.source_bytes()), slot(plan.slot_bytes);
  for (auto* bytes : {&source, &slot}) {
    for (auto& byte : *bytes) byte = static_cast<std::byte>(random());
  }
  auto source_buffer = Buffer::allocate({MemoryKind::cuda, 0}, source.size(), false, "a test");
  auto slot_buffer = Buffer::allocate({MemoryKind::cuda, 0}, slot.size(), false, "a test");
  write_region(source_buffer.region(), 0, source);
  write_region(slot_buffer.region(), 0, slot);

  SourceDigests expected(plan);
  expected.begin(source.data(), {0, parameters});
  expected.finish();
  auto digests = GpuDigests::of_source(plan, 0);
  for (int round = 0; round < 2; ++round) {
    digests.begin(source_buffer.region().data);
    digests.queue({0, parameters}, gpu::Share::all, nullptr);
    const auto results = digests.finish(deadline);
    for (std::size_t t = 0; t < tp; ++t) {
      for (std::size_t p = 0; p < parameters; ++p) {
        if (plan.copy(t, p)) continue;
        ASSERT_EQ(results[t * parameters + p], expected.claim().shard(t, p))
            << plan.model.parameters[p].info.name << " rank " << t;
      }
    }
  }
  for (std::size_t t = 0; t < tp; ++t) {
    auto held = GpuDigests::of_slot(plan, t, 0);
    held.begin(slot_buffer.region().data);
    const auto segments = plan.ranks[t].schedule.segments.size();
    for (std::size_t i = 0; i < segments; ++i) held.queue({i, 1}, gpu::Share::half, nullptr);
    const auto results = held.finish(deadline);
    for (std::size_t p = 0; p < parameters; ++p) {
      ASSERT_EQ(results[p], digest_of_shard(plan, t, p, slot.data()))
          << plan.model.parameters[p].info.name << " rank " << t;
    }
    // And of what is copied there in the same pass; nothing else may be touched.
    gpu::Stream stream(0);
    held.begin(slot_buffer.region().data);
    for (std::size_t i = 0; i < segments; i += 2) {
      const auto target = held.target();
      stream.after(*target.stream);
      const auto first = target.first_task[i], end = target.first_task[std::min(i + 2, segments)];
      gpu::copy_and_digest(target.tasks + first, end - first, {source_buffer.region().data}, slot_buffer.region().data,
                           target.sums, i % 4 == 0 ? gpu::Share::half : gpu::Share::all, stream);
      target.stream->after(stream);
    }
    const auto copied = held.finish(deadline);
    auto filled = slot;
    for (std::size_t p = 0; p < parameters; ++p) {
      const auto& shard = plan.ranks[t].shards[p];
      copy_rows(filled.data() + shard.destination_offset, shard.destination_pitch,
                source.data() + plan.source_offset(p) + shard.parameter_offset, shard.parameter_pitch, shard.row_bytes,
                shard.rows);
      ASSERT_EQ(copied[p], digest_of_shard(plan, t, p, filled.data())) << plan.model.parameters[p].info.name;
    }
    const HostView view(slot_buffer.region());
    ASSERT_EQ(std::memcmp(view.bytes().data(), filled.data(), filled.size()), 0) << "tp rank " << t << " of " << tp;
    write_region(slot_buffer.region(), 0, slot);
  }
}

TEST_F(GpuKernels, DigestsOfShardsWhoeverSendsThem) {
  ModelConfig c{
      .layers = 2, .hidden = 64, .heads = 8, .kv_heads = 2, .head_dim = 8, .intermediate = 96, .vocabulary = 200};
  c.family = Family::qwen3_moe;
  c.experts = {.count = 4, .intermediate = 32};
  for (const std::uint64_t ep : {1, 2}) {
    for (const std::uint64_t trainers : {1, 2, 3}) {
      const auto model = build_model(c, EngineFormat{.ep = ep});
      const auto plan =
          make_plan(model, 2, 1, make_layout(trainers == 1 ? LayoutKind::whole : LayoutKind::fsdp, model, trainers));
      const auto parameters = model.parameters.size();
      for (std::size_t t = 0; t < plan.tp; ++t) {
        const auto slot = random_bytes(plan.slot_bytes, 10 * trainers + t);
        const auto held = on_gpu(slot);
        auto digests = GpuDigests::of_shards(plan, t, 0);
        for (const auto& [first, count] : {Range{0, parameters}, Range{3, 1}, Range{parameters / 2, 5}}) {
          digests.begin(held.region().data);
          digests.queue({first, count}, gpu::Share::all, nullptr);
          const auto results = digests.finish(Deadline::after(30));
          for (std::size_t p = 0; p < parameters; ++p) {
            const bool asked = p >= first && p < first + count;
            ASSERT_EQ(results[p], asked ? digest_of_shard(plan, t, p, slot.data()) : Digest())
                << model.parameters[p].info.name << " rank " << t << ", ep " << ep << ", trainers " << trainers;
          }
        }
      }
    }
  }
}

TEST_F(GpuKernels, DigestsAreThoseOfTheHost) {
  for (const std::uint64_t tp : {1, 2, 4, 8}) {
    expect_equal_digests(64, 96, tp);
    expect_equal_digests(512, 1536, tp);
    expect_equal_digests(2048, 2056, tp);
    expect_equal_digests(72, 104, tp);  // rows that are no multiple of 16 bytes
  }
}

TEST_F(GpuKernels, AFlippedBitChangesTheDigest) {
  auto bytes = random_bytes(100'000, 1);
  gpu::Stream stream(0);
  const gpu::DigestTask task{.data = 0,
                             .offset = 0,
                             .pitch = 100'000,
                             .parameter_pitch = 100'000,
                             .source = 0,
                             .source_pitch = 100'000,
                             .row_bytes = 100'000,
                             .rows = 1,
                             .result = 0,
                             .unused = 0};
  const auto tasks = on_gpu(std::as_bytes(std::span(&task, 1)));
  std::mt19937_64 random(2);
  for (int i = 0; i < 200; ++i) {
    if (i > 0) bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 << random() % 8);
    const auto data = on_gpu(bytes);
    const auto sums = on_gpu(std::vector<std::byte>(sizeof(Digest)));
    gpu::digest(reinterpret_cast<const gpu::DigestTask*>(tasks.region().data), 1, data.region().data,
                reinterpret_cast<std::uint64_t*>(sums.region().data), gpu::Share::all, stream);
    stream.synchronize(Deadline::after(10), "digest");
    Digest digest;
    read_region(sums.region(), 0, std::as_writable_bytes(std::span(&digest, 1)));
    ASSERT_EQ(digest, digest_bytes(bytes, 0));
  }
}

TEST_F(GpuKernels, StridedCopiesMoveRowsAndNothingBetween) {
  gpu::Stream stream(0);
  for (const std::uint64_t row_bytes : {2, 16, 30, 512, 4096, 5000}) {
    const std::uint64_t rows = 37, source_pitch = row_bytes * 3, destination_pitch = row_bytes + 16;
    const auto source = random_bytes(rows * source_pitch + 64, row_bytes);
    auto expected = random_bytes(rows * destination_pitch + 64, row_bytes + 1);
    const auto from = on_gpu(source), to = on_gpu(expected);
    const gpu::CopyTask task{.source = 32,
                             .destination = 16,
                             .source_pitch = source_pitch,
                             .destination_pitch = destination_pitch,
                             .row_bytes = row_bytes,
                             .rows = rows};
    const auto tasks = on_gpu(std::as_bytes(std::span(&task, 1)));
    gpu::copy_strided(reinterpret_cast<const gpu::CopyTask*>(tasks.region().data), 1, from.region().data,
                      to.region().data, stream);
    stream.synchronize(Deadline::after(10), "copy");
    for (std::uint64_t r = 0; r < rows; ++r) {
      std::memcpy(expected.data() + 16 + r * destination_pitch, source.data() + 32 + r * source_pitch, row_bytes);
    }
    const HostView held(to.region());
    ASSERT_EQ(std::memcmp(held.bytes().data(), expected.data(), expected.size()), 0) << row_bytes;
  }
}

/// Rows of a parameter and of the memory that they lie in, with gaps or without; every second at multiples of 16 bytes.
struct RandomRows {
  ParameterRows rows;
  std::uint64_t at = 0;  // of row 0 in memory
  WordGenerator words = {};
  std::uint64_t held() const { return at + rows.rows * rows.pitch; }
  std::uint64_t parameter() const { return rows.offset + rows.rows * rows.parameter_pitch; }

  explicit RandomRows(std::mt19937_64& random) : words{random(), random(), random()} {
    if (random() % 2 == 0) {  // a version that is another one with changes
      words.chance = random() >> 33;
      words.flip = random() % 2 == 0 ? 0x0001000100010001 : 0x0000000100000001;
      words.flip_start = random();
    }
    const std::uint64_t unit = random() % 2 == 0 ? 16 : 1;
    const auto some = [&](std::uint64_t most) { return unit * (random() % most); };
    const auto row_bytes = unit + some(random() % 4 == 0 ? 40'000 : 40);
    const bool gaps = random() % 3 != 0;
    rows = {some(1000), row_bytes + (gaps ? some(50) : 0), row_bytes + (gaps ? some(50) : 0), row_bytes,
            1 + random() % 30};
    at = some(20);
  }
};

TEST_F(GpuKernels, WhatIsMadeIsWhatTheHostMakes) {
  std::mt19937_64 random(3);
  gpu::Stream stream(0);
  for (int i = 0; i < 200; ++i) {
    const RandomRows made(random);
    const auto& rows = made.rows;
    auto expected = random_bytes(made.held(), random());
    const auto memory = on_gpu(expected);
    gpu::generate(made.words, rows, memory.region().data + made.at, stream);
    stream.synchronize(Deadline::after(10), "making weights");
    std::vector<std::byte> parameter(made.parameter());
    for (std::size_t byte = 0; byte < parameter.size(); ++byte)
      parameter[byte] = static_cast<std::byte>(made.words.byte(byte));
    copy_rows(expected.data() + made.at, rows.pitch, parameter.data() + rows.offset, rows.parameter_pitch,
              rows.row_bytes, rows.rows);
    const HostView held(memory.region());
    ASSERT_EQ(std::memcmp(held.bytes().data(), expected.data(), expected.size()), 0)
        << rows.row_bytes << " x " << rows.rows << " at " << made.at << ", pitch " << rows.pitch;
  }
}

TEST_F(GpuKernels, ComparisonsFindTheFirstByteThatDiffers) {
  std::mt19937_64 random(4);
  gpu::Stream stream(0);
  for (int i = 0; i < 200; ++i) {
    const RandomRows made(random);
    const auto& rows = made.rows;
    const auto size = rows.row_bytes * rows.rows, first = random() % 1'000'000;
    std::vector<std::byte> reference(made.parameter());
    generate(made.words, 0, reference);
    auto held = random_bytes(made.held(), random());  // what lies between the rows is nobody's
    copy_rows(held.data() + made.at, rows.pitch, reference.data() + rows.offset, rows.parameter_pitch, rows.row_bytes,
              rows.rows);
    // Nothing, or up to three bits in any place.
    std::set<std::uint64_t> flipped;
    for (auto flips = random() % 4; flips > 0; --flips) flipped.insert(random() % size);
    for (const auto number : flipped)
      held[made.at + number / rows.row_bytes * rows.pitch + number % rows.row_bytes] ^= std::byte{0x20};
    const auto expected = flipped.empty() ? 0 : ~(first + *flipped.begin());
    const auto memory = on_gpu(held), given = on_gpu(reference), found = on_gpu(std::vector<std::byte>(24));
    auto* const differences = reinterpret_cast<std::uint64_t*>(found.region().data);
    gpu::compare(made.words, rows, memory.region().data + made.at, first, differences, stream);
    gpu::compare(given.region().data + rows.offset, rows, memory.region().data + made.at, first, differences + 1,
                 stream);
    stream.synchronize(Deadline::after(10), "comparing weights");
    std::array<std::uint64_t, 3> seen{};
    read_region(found.region(), 0, std::as_writable_bytes(std::span(seen)));
    ASSERT_EQ(seen[0], expected) << rows.row_bytes << " x " << rows.rows << " at " << made.at;
    ASSERT_EQ(seen[1], expected) << rows.row_bytes << " x " << rows.rows << " at " << made.at;
    ASSERT_EQ(seen[2], 0U);
  }
}

}  // namespace
}  // namespace weightcast
