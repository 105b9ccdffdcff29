// Marks on GPUs: of whole versions, and of what copy_and_digest() writes.
#include <gtest/gtest.h>

#include <optional>

#include "gpu/delta_cases.hpp"
#include "gpu/held.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/device/gpu.hpp"
#include "weightcast/verify/digest.hpp"

namespace weightcast {
namespace {

using delta_cases::number;
using delta_cases::Random;
using harness::Held;
using harness::random_bytes;
using harness::random_values;

class GpuMarks : public harness::GpuTest {};

TEST_F(GpuMarks, MarksOfAnySizeAndPlace) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const auto size = 2 * number(random, 1, seed % 3 == 0 ? 40'000 : 3'000);
    // Behind it, before it and in the marks nothing may be read that counts, or written.
    const auto shift = [&] { return random() % 2 == 0 ? 16 * number(random, 0, 3) : 2 * number(random, 0, 20); };
    const auto before_at = shift(), after_at = shift();
    const auto before = random_bytes(before_at + size + 32, random());
    auto after = random_bytes(after_at + size + 32, random());
    std::memcpy(after.data() + after_at, before.data() + before_at, size);
    delta_cases::change(random, std::span(after).subspan(after_at, size));
    auto expected = random_values<std::uint32_t>(random, size / 64 + 3);
    if (random() % 2 == 0) std::fill(expected.begin(), expected.end(), 0);
    const Held olds(before), news(after);
    const Held marks(expected);
    delta_cases::mark(std::span(before).subspan(before_at, size), std::span(after).subspan(after_at, size), expected);
    gpu::mark(olds.data() + before_at, news.data() + after_at, size, marks.data(), stream_);
    finish();
    ASSERT_EQ(marks.read(), expected) << "seed " << seed << ": " << size << " bytes at " << before_at << ", "
                                      << after_at;
  }
}

/// Rows that copy_and_digest() writes with marks, as many bytes as it says and anywhere even.
void expect_marked_copy(Random& random, std::optional<NarrowFloat> rounding, const gpu::Stream& stream) {
  const std::uint64_t width = rounding ? 2 : 1, unit = random() % 2 == 0 ? 16 : 2;
  const auto some = [&](std::uint64_t most) { return unit * number(random, 0, most); };
  const auto base_at = random() % 2 == 0 ? some(3) : 2 * number(random, 0, 20), source_offset = some(10);
  std::vector<gpu::DigestTask> tasks(number(random, 1, 5));
  std::uint64_t base_end = 0, source_end = source_offset;
  for (std::uint32_t t = 0; t < tasks.size(); ++t) {
    auto& task = tasks[t];
    task = {.data = base_end + some(5), .offset = some(3000), .source = source_end + some(5), .result = t};
    task.row_bytes = static_cast<std::uint32_t>(unit + some(random() % 3 == 0 ? 30'000 / unit : 40));
    task.rows = static_cast<std::uint32_t>(number(random, 1, 12));
    task.pitch = task.row_bytes + some(6);
    task.parameter_pitch = task.row_bytes + some(6);
    task.source_pitch = task.row_bytes + some(6);
    base_end = task.data + task.rows * task.pitch;
    source_end = task.source + task.rows * task.source_pitch;
  }
  const auto source = random_bytes(width * (source_end - source_offset), random());
  const auto from = [&](const gpu::DigestTask& task, std::uint64_t row) {
    return source.data() + width * (task.source + row * task.source_pitch - source_offset);
  };
  // What is there before is what comes, but for a share.
  auto written = random_bytes(base_at + base_end, random());
  for (const auto& task : tasks) {
    for (std::uint64_t row = 0; row < task.rows; ++row) {
      auto* const to = written.data() + base_at + task.data + row * task.pitch;
      if (rounding) {
        narrow(*rounding, to, from(task, row), task.row_bytes / 2);
      } else {
        std::memcpy(to, from(task, row), task.row_bytes);
      }
    }
  }
  auto held = written;
  std::vector<Digest> digests(tasks.size());
  for (const auto& task : tasks) {
    for (std::uint64_t row = 0; row < task.rows; ++row)
      delta_cases::change(random, std::span(held).subspan(base_at + task.data + row * task.pitch, task.row_bytes));
    digests[task.result] = digest_rows(written.data() + base_at + task.data, task.pitch, task.row_bytes, task.rows,
                                       task.offset, task.parameter_pitch);
  }
  auto expected = random_values<std::uint32_t>(random, base_end / 64 + 1);
  if (random() % 2 == 0) std::fill(expected.begin(), expected.end(), 0);
  const Held base(held), given(source);
  const Held on_gpu(tasks);
  const Held marks(expected);
  const Held sums(std::vector<Digest>(tasks.size()));
  delta_cases::mark(std::span(held).subspan(base_at), std::span(written).subspan(base_at), expected);
  gpu::copy_and_digest(on_gpu.data(), tasks.size(), {given.data(), source_offset, rounding, marks.data()},
                       base.data() + base_at, reinterpret_cast<std::uint64_t*>(sums.data()),
                       random() % 2 == 0 ? gpu::Share::half : gpu::Share::all, stream);
  stream.synchronize(Deadline::after(30), "a test");
  ASSERT_EQ(base.read(), written);
  ASSERT_EQ(sums.read(), digests);
  ASSERT_EQ(marks.read(), expected);
}

TEST_F(GpuMarks, CopiesMarkWhatTheyChange) {
  const std::optional<NarrowFloat> roundings[] = {{}, NarrowFloat::bf16, NarrowFloat::f16};
  for (std::uint64_t seed = 0; seed < 450; ++seed) {
    Random random(seed);
    ASSERT_NO_FATAL_FAILURE(expect_marked_copy(random, roundings[seed % 3], stream_)) << "seed " << seed;
  }
}

TEST_F(GpuMarks, ACopyIsACopy) {
  const auto bytes = random_bytes(100'001, 1);
  const Held from(bytes), to(std::vector<std::byte>(100'002));
  gpu::copy(to.data() + 1, from.data(), bytes.size(), stream_);
  gpu::copy(to.data(), from.data(), 0, stream_);
  finish();
  const auto held = to.read();
  EXPECT_EQ(held.front(), std::byte{0});
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), held.begin() + 1));
}

}  // namespace
}  // namespace weightcast
