// A training loop's tensors on host and GPU into source regions on either: the same bytes as the host makes of them.
#include <gtest/gtest.h>

#include <cstring>

#include "harness/error_of.hpp"
#include "harness/model_bytes.hpp"
#include "harness/piece_loop.hpp"
#include "harness/quantized_loop.hpp"
#include "harness/training_plan.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/trainer/trainer.hpp"

namespace weightcast {
namespace {

using harness::random_bytes;

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
  const auto task_memory = Buffer::allocate(on_gpu, sizeof(gpu::DigestTask), false, "a test"),
             sums = Buffer::allocate(on_gpu, sizeof(Digest), false, "a test");
  write_region(from.region(), 0, source);
  gpu::Stream stream(0);
  for (const auto format : {NarrowFloat::bf16, NarrowFloat::f16}) {
    for (const std::uint64_t count : {1ULL, 7ULL, 8ULL, 9ULL, 4095ULL, 70'001ULL, 2'500'000ULL, 3'000'000ULL}) {
      for (const std::uint64_t skip : {0, 1, 3}) {  // elements: 0 is the aligned way
        std::vector<std::byte> expected(2 * most + 16, std::byte{0x5a}), held(expected.size());
        write_region(to.region(), 0, expected);
        const gpu::DigestTask task{
            .data = 2 * skip, .source = 2 * skip, .row_bytes = static_cast<std::uint32_t>(2 * count), .rows = 1};
        write_region(task_memory.region(), 0, std::as_bytes(std::span(&task, 1)));
        gpu::zero(sums.region().data, sizeof(Digest), stream);
        gpu::copy_and_digest(reinterpret_cast<const gpu::DigestTask*>(task_memory.region().data), 1,
                             {from.region().data, 0, format}, to.region().data,
                             reinterpret_cast<std::uint64_t*>(sums.region().data), gpu::Share::all, stream);
        stream.synchronize(Deadline::after(10), "a test");
        narrow(format, expected.data() + 2 * skip, source.data() + 4 * skip, count);
        read_region(to.region(), 0, held);
        ASSERT_EQ(std::memcmp(held.data(), expected.data(), held.size()), 0) << count << " " << skip;
        Digest digest;
        read_region(sums.region(), 0, std::as_writable_bytes(std::span(&digest, 1)));
        ASSERT_EQ(digest, digest_bytes(std::span(expected).subspan(2 * skip, 2 * count), 0)) << count << " " << skip;
      }
    }
  }
}

TEST_F(GpuFill, FromAndToEitherMemory) {
  for (const auto wire : {DType::BF16, DType::F16, DType::F32}) {
    const auto plan = harness::training_plan(wire);
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
          ASSERT_EQ(std::memcmp(held.bytes().data() + plan.source_offset(p), expected.data(), expected.size()), 0)
              << tensors[p].info.describe() << " " << name(wire) << " " << p;
        }
      }
    }
  }
}

TEST_F(GpuFill, TheKernelsGatherAndScatterAsTheHostDoes) {
  const auto source = random_bytes(1 << 16, 2);
  const auto from = Buffer::allocate(on_gpu, source.size(), false, "a test");
  const auto to = Buffer::allocate(on_gpu, source.size(), false, "a test");
  write_region(from.region(), 0, source);
  gpu::Stream stream(0);
  const auto expect = [&](const std::vector<std::byte>& expected) {
    stream.synchronize(Deadline::after(10), "a test");
    std::vector<std::byte> held(expected.size());
    read_region(to.region(), 0, held);
    ASSERT_EQ(std::memcmp(held.data(), expected.data(), held.size()), 0);
  };
  for (const std::uint64_t width : {1, 2, 4, 8}) {
    const auto w = static_cast<std::int64_t>(width);
    const std::uint64_t middle = source.size() / 2;
    for (const auto& [row_stride, column_stride] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{w, 40 * w}, {-70 * w, 2 * w}, {90 * w, -w}, {64 * w, w}}) {
      for (const std::uint64_t first : {0, 1, 37}) {
        const StridedElements elements{29, first, 29 * 31 - first - 2, row_stride, column_stride, width};
        const auto* const matrix = source.data() + middle;
        auto expected = random_bytes(source.size(), 3);
        write_region(to.region(), 0, expected);
        gather(elements, expected.data() + 64, matrix);
        gpu::gather(elements, std::nullopt, to.region().data + 64, from.region().data + middle, stream);
        expect(expected);
        scatter(elements, expected.data() + middle, source.data() + 64);
        gpu::scatter(elements, to.region().data + middle, from.region().data + 64, stream);
        expect(expected);
        for (const auto rounding :
             {Rounding{NarrowFloat::bf16, WideFloat::f32}, Rounding{NarrowFloat::f16, WideFloat::f32},
              Rounding{NarrowFloat::bf16, WideFloat::f16}, Rounding{NarrowFloat::f16, WideFloat::bf16}}) {
          if (width_bytes(rounding.from) != width) continue;
          std::vector<std::byte> dense(elements.count * width);
          gather(elements, dense.data(), matrix);
          narrow(rounding.to, expected.data(), dense.data(), elements.count, rounding.from);
          gpu::gather(elements, rounding, to.region().data, from.region().data + middle, stream);
          expect(expected);
        }
      }
    }
  }
}

TEST_F(GpuFill, AnyStridesFromAndToEitherMemory) {
  const auto plan = harness::training_plan(DType::BF16, true, 1);
  for (const auto& weights : {Placement{}, on_gpu}) {
    Trainer trainer(plan, weights);
    trainer.reserve();
    for (int round = 0; round < 3; ++round) {
      constexpr DType dtypes[] = {DType::F32, DType::BF16, DType::F16};
      std::vector<std::vector<std::byte>> data, expected;
      std::vector<Buffer> buffers;
      std::vector<TrainingTensor> tensors;
      for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
        TrainingTensor tensor{plan.model.parameters[p].info, nullptr, {}};
        tensor.info.dtype = dtypes[(p + static_cast<std::size_t>(round)) % 3];
        const auto width = static_cast<std::int64_t>(bits(tensor.info.dtype)) / 8;
        data.push_back(random_bytes(*tensor.info.size_bytes(), p + 200));
        const auto rows = static_cast<std::int64_t>(tensor.info.shape.front());
        const auto size = static_cast<std::int64_t>(data.back().size());
        std::int64_t at = 0;
        if (tensor.info.shape.size() == 1) {  // backwards; else transposed or each row backwards
          tensor.strides_bytes = {-width};
          at = size - width;
        } else if (p % 2 == 0) {
          tensor.strides_bytes = {width, rows * width};
        } else {
          tensor.strides_bytes = {size / rows, -width};
          at = size / rows - width;
        }
        const auto layout = layout_of(tensor.info, tensor.strides_bytes).value();
        const StridedElements elements{
            layout.columns, 0, *tensor.info.elements(), layout.row_stride, layout.column_stride, layout.element_bytes};
        auto& sent = expected.emplace_back(data.back().size());
        gather(elements, sent.data(), data.back().data() + at);
        if (tensor.info.dtype != DType::BF16) {
          const auto dense = sent;
          sent.resize(2 * elements.count);
          narrow(NarrowFloat::bf16, sent.data(), dense.data(), elements.count,
                 tensor.info.dtype == DType::F32 ? WideFloat::f32 : WideFloat::f16);
        }
        tensor.data = data.back().data() + at;
        if (p / 2 % 2 == 0) {
          tensor.placement = on_gpu;
          buffers.push_back(Buffer::allocate(on_gpu, data.back().size(), false, "a test"));
          write_region(buffers.back().region(), 0, data.back());
          tensor.data = buffers.back().region().data + at;
        }
        tensors.push_back(tensor);
      }
      // A tied head with memory of its own, dense: what the embedding becomes.
      TrainingTensor head{plan.model.parameters.front().info, expected.front().data(), {}};
      head.info.name = "lm_head.weight";
      tensors.push_back(head);
      trainer.fill(0, tensors);
      const HostView held(trainer.source(0));
      for (std::size_t p = 0; p < expected.size(); ++p) {
        ASSERT_EQ(std::memcmp(held.bytes().data() + plan.source_offset(p), expected[p].data(), expected[p].size()), 0)
            << tensors[p].info.describe() << " " << p;
      }
      EXPECT_NO_THROW(trainer.expect_held(0, head, "model.embed_tokens.weight"));
      expected.front().back() ^= std::byte{1};
      EXPECT_THROW(trainer.fill(0, tensors), Error);
      EXPECT_THROW(trainer.expect_held(0, head, "model.embed_tokens.weight"), Error);
    }
  }
}

/// Of two ranks each has one of two pieces of every parameter, or both, or three of one.
SourceLayout ragged_layout(const Model& model) {
  std::vector<HeldRectangle> rectangles;
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    const auto [rows, columns] = matrix_of(model.parameters[p].info);
    const auto half = rows / 3;
    rectangles.push_back({p % 2, p, {0, 0, half, columns}});
    if (columns == 1 || p % 3 != 0) {
      for (std::size_t from = 0; from < (p % 5 == 0 ? 2 : 1); ++from)
        rectangles.push_back({(p + 1 + from) % 2, p, {half, 0, rows - half, columns}});
    } else {
      rectangles.push_back({0, p, {half, 0, rows - half, columns - 5}});
      rectangles.push_back({0, p, {half, columns - 5, rows - half, 5}});
    }
  }
  return custom_layout(model, 2, rectangles);
}

TEST_F(GpuFill, PiecesOfSeveralTrainerRanks) {
  const auto model = harness::training_plan(DType::BF16).model;
  const auto plan = make_plan(model, 2, 1, ragged_layout(model));
  for (const auto& weights : {Placement{}, on_gpu}) {
    for (const auto given : {DType::F32, DType::BF16}) {
      const auto masters = harness::whole_masters(model, given, 7);
      const auto sent = harness::as_sent(model, masters, given);
      Trainer first(plan, weights, 0), second(plan, weights, 1);
      const SourceClaim* claims[2];
      for (auto* const trainer : {&first, &second}) {
        const std::size_t rank = trainer == &first ? 0 : 1;
        trainer->reserve();
        const harness::PieceLoop loop(plan, rank, masters, given, 3, 2);
        for (int round = 0; round < 2; ++round) trainer->fill(0, loop.tensors);
        EXPECT_EQ(harness::difference(plan, rank, HostView(trainer->source(0)).bytes(), sent), "");
        claims[rank] = &trainer->claimed(0);
        EXPECT_TRUE(claims[rank]->knows_all());
      }
      EXPECT_EQ(harness::difference(plan, claims, sent), "");
    }
  }
}

/// Blocks and rows, edges included; the hidden size is odd in vectors of 16 bytes.
Model quantized_model(Quantization quantization) {
  return build_model(harness::training_config(1, 328, 64, 640, 100), {.ep = 1, .quantization = quantization});
}

/// The first tensor that is quantised, column after column on the GPU.
void transpose(const TransferPlan& plan, const std::vector<std::vector<std::byte>>& masters, DType given,
               harness::PieceLoop& loop) {
  auto& tensor = *std::ranges::find_if(loop.tensors, [&](const TrainingTensor& t) {
    return scales_parameter(plan.model, static_cast<std::size_t>(plan.model.find(t.info.name))).has_value();
  });
  const auto p = static_cast<std::size_t>(plan.model.find(tensor.info.name));
  const auto [rows, columns] = matrix_of(tensor.info);
  const auto width = element_bytes(given);
  std::vector<std::byte> data(masters[p].size());
  for (std::uint64_t i = 0; i < rows * columns; ++i) {
    std::memcpy(data.data() + width * (i % columns * rows + i / columns), masters[p].data() + width * i, width);
  }
  loop.buffers.push_back(Buffer::allocate({MemoryKind::cuda, 0}, data.size(), false, "a test"));
  write_region(loop.buffers.back().region(), 0, data);
  tensor.data = loop.buffers.back().region().data;
  tensor.placement = {MemoryKind::cuda, 0};
  tensor.strides_bytes = {static_cast<std::int64_t>(width), static_cast<std::int64_t>(width * rows)};
}

TEST_F(GpuFill, MatricesBecomeTheSameFp8FromAndToEitherMemory) {
  for (const auto quantization : {Quantization::fp8_block, Quantization::fp8_channel}) {
    const auto model = quantized_model(quantization);
    const auto plan = make_plan(model, 1, 1);
    for (const auto& weights : {Placement{}, on_gpu}) {
      for (const auto given : {DType::F32, DType::BF16, DType::F16}) {
        const auto masters = harness::finite_masters(model, given, 3);
        const auto sent = harness::as_quantized(model, masters, given);
        Trainer trainer(plan, weights);
        trainer.reserve();
        for (const std::size_t every : {1, 2, 3}) {  // on the GPU
          harness::PieceLoop loop(plan, 0, masters, given, 3, every);
          harness::remove_scales(model, loop.tensors);
          transpose(plan, masters, given, loop);
          trainer.fill(0, loop.tensors);
          EXPECT_EQ(harness::difference(plan, 0, HostView(trainer.source(0)).bytes(), sent), "")
              << name(given) << " " << every;
          const SourceClaim* const claims[] = {&trainer.claimed(0)};
          EXPECT_TRUE(claims[0]->knows_all());
          EXPECT_EQ(harness::difference(plan, claims, sent), "");
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
  const auto memory = Buffer::allocate(on_gpu, plan.source_bytes(), false, "a test");
  for (const auto& rule : plan.model.parameters) tensors.push_back({rule.info, memory.region().data, on_gpu});
  tensors.back().placement.gpu = 1;
  const auto error = harness::error_of([&] { trainer.fill(0, tensors); });
  EXPECT_NE(std::string(error.what()).find(tensors.back().info.name + " is on another GPU"), std::string::npos);
}

}  // namespace
}  // namespace weightcast
