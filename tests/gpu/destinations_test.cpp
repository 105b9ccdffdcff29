// A slot's weights into tensors of somebody else's, on the host and on a GPU: all that a layout may be, and what it may
// not.
#include "weightcast/capi/destinations.hpp"

#include <gmock/gmock.h>

#include <cstring>

#include "harness/model_bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class DestinationsTest : public testing::TestWithParam<MemoryKind> {
 protected:
  void SetUp() override {
    if (GetParam() == MemoryKind::cuda && gpu::count() == 0) GTEST_SKIP() << gpu::why_none();
    ModelConfig c{
        .layers = 2, .hidden = 24, .heads = 4, .kv_heads = 2, .head_dim = 6, .intermediate = 20, .vocabulary = 128};
    c.tied_embeddings = true;
    plan = make_plan(build_model(c), 1, 1);
    placement = GetParam() == MemoryKind::cuda ? Placement(MemoryKind::cuda, 0) : Placement();
    slot = Buffer::allocate(placement, plan.slot_bytes, false, "a test");
    bytes = harness::random_bytes(slot.region().size_bytes, 1);
    write_region(slot.region(), 0, bytes);
    for (const auto& rule : plan.model.parameters) table.push_back(add(rule.info));
  }

  /// A tensor with memory of its own, three times as much as it needs, and dense in the middle of it.
  ForeignTensor add(const TensorInfo& info) {
    const auto size_bytes = *info.size_bytes();
    memory.push_back(Buffer::allocate(placement, 3 * size_bytes, false, "a test"));
    return {info, memory.back().region().data + size_bytes, placement, {}};
  }
  ForeignTensor& operator[](std::string_view name) {
    return *std::find_if(table.begin(), table.end(), [&](const auto& tensor) { return tensor.info.name == name; });
  }

  /// After a copy every allocation holds its tensor, where the strides say, and nothing else.
  void expect_copied() {
    Destinations destinations(plan, 0, placement);
    destinations.resolve(table);
    for (const auto& buffer : memory)
      write_region(buffer.region(), 0, std::vector<std::byte>(buffer.region().size_bytes, std::byte{0x77}));
    destinations.copy(slot.region(), Deadline::after(10));
    for (std::size_t i = 0; i < memory.size(); ++i) {
      const auto& info = table[i].info;
      const auto size_bytes = *info.size_bytes();
      std::vector<std::byte> expected(3 * size_bytes, std::byte{0x77}), held(expected.size());
      const auto layout = layout_of(info, table[i].strides_bytes).value();
      const auto index = static_cast<std::size_t>(plan.model.find(info.name));
      const auto* const from = bytes.data() + plan.ranks[0].shards[index].destination_offset;
      const auto first = table[i].data - memory[i].region().data;
      for (std::uint64_t e = 0; e < *info.elements(); ++e) {
        const auto row = static_cast<std::ptrdiff_t>(e / layout.columns),
                   column = static_cast<std::ptrdiff_t>(e % layout.columns);
        std::memcpy(expected.data() + first + row * layout.row_stride + column * layout.column_stride, from + 2 * e, 2);
      }
      read_region(memory[i].region(), 0, held);
      ASSERT_EQ(std::memcmp(held.data(), expected.data(), held.size()), 0) << info.describe() << " " << i;
    }
  }
  std::string refusal() {
    try {
      Destinations(plan, 0, placement).resolve(table);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return {};
  }

  TransferPlan plan;
  Placement placement;
  Buffer slot;
  std::vector<std::byte> bytes;
  std::vector<Buffer> memory;
  std::vector<ForeignTensor> table;
};

TEST_P(DestinationsTest, EveryLayoutWhoseElementsAreApart) {
  expect_copied();
  std::size_t kind = 0;
  for (auto& tensor : table) {
    const auto& shape = tensor.info.shape;
    const auto rows = static_cast<std::int64_t>(shape.front());
    if (shape.size() == 1) {
      tensor.strides_bytes = {kind++ % 2 == 0 ? -2 : 4};
      continue;
    }
    const auto columns = static_cast<std::int64_t>(shape[1]);
    switch (kind++ % 5) {
      case 0: tensor.strides_bytes = {2, 2 * rows}; break;          // transposed
      case 1: tensor.strides_bytes = {2 * columns + 6, 2}; break;   // rows of something wider
      case 2: tensor.strides_bytes = {2 * columns, -2}; break;      // backwards, from row to row forwards
      case 3: tensor.strides_bytes = {4 * columns, 4}; break;       // every other element
      case 4: tensor.strides_bytes = {-2 * columns - 2, 2}; break;  // rows backwards
    }
    if (kind % 5 == 3) tensor.data += 2 * (columns - 1);
    if (kind % 5 == 0) tensor.data += 2 * (columns - 1) * (rows - 1);
  }
  expect_copied();
}

TEST_P(DestinationsTest, ATiedHeadIsWrittenToo) {
  auto head = add(plan.model.parameters.front().info);
  head.info.name = "lm_head.weight";
  table.push_back(head);
  expect_copied();
  table.back().data = table.front().data;  // one memory, two names
  memory.pop_back();
  Destinations(plan, 0, placement).resolve(table);
  table.back().data += 2;
  EXPECT_THAT(refusal(), HasSubstr("lm_head.weight overlaps another tensor of the table, model.embed_tokens.weight"));
}

TEST_P(DestinationsTest, MemoryThatIsSharedIsRefusedByName) {
  auto& up = (*this)["model.layers.0.mlp.up_proj.weight"];      // [20, 24]
  auto& down = (*this)["model.layers.1.mlp.down_proj.weight"];  // [24, 20]
  auto& gate = (*this)["model.layers.0.mlp.gate_proj.weight"];
  up.strides_bytes = {0, 2};
  down.strides_bytes = {10, 2};
  gate.strides_bytes = {48, 1};
  (*this)["model.norm.weight"].strides_bytes = {0};
  EXPECT_THAT(refusal(), AllOf(HasSubstr("model.layers.0.mlp.up_proj.weight has elements that share memory"),
                               HasSubstr("model.layers.1.mlp.down_proj.weight has elements that share memory"),
                               HasSubstr("model.norm.weight has elements that share memory"),
                               HasSubstr("model.layers.0.mlp.gate_proj.weight is not aligned")));
  // Two that interleave without meeting, and the same pushed into each other.
  up.strides_bytes = gate.strides_bytes = {96, 4};
  gate.data = up.data + 2;
  down.strides_bytes.clear();
  (*this)["model.norm.weight"].strides_bytes.clear();
  EXPECT_EQ(refusal(), "");
  gate.data = up.data + 4;
  EXPECT_THAT(refusal(), AllOf(HasSubstr("overlaps another tensor of the table"), Not(HasSubstr("down_proj"))));
}

INSTANTIATE_TEST_SUITE_P(Host, DestinationsTest, testing::Values(MemoryKind::host));
INSTANTIATE_TEST_SUITE_P(Gpu, DestinationsTest, testing::Values(MemoryKind::cuda));

}  // namespace
}  // namespace weightcast
