// Versions written as deltas are, read in any way, the versions.
#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include <atomic>
#include <filesystem>

#include "harness/delta_chain.hpp"
#include "harness/error_of.hpp"
#include "harness/random_model.hpp"

namespace weightcast {
namespace {

using harness::DeltaTest;
using harness::error_of;
using harness::model_of;
using harness::number;
using harness::Weights;
using testing::AllOf;
using testing::HasSubstr;

/// Parameters of all types and sizes: scalars, empty ones, less than a block, several blocks, more than is read at
/// once.
Model random_model() {
  std::vector<TensorInfo> tensors;
  for (std::uint64_t count = number(1, 5), i = 0; i < count; ++i) {
    TensorInfo tensor;
    tensor.name = fmt::format("{}.{}", *rc::gen::element('a', 'b', 'c'), i);
    tensor.dtype = *rc::gen::element(DType::BF16, DType::F16, DType::F32, DType::F64, DType::I8, DType::BOOL,
                                     DType::F8_E4M3, DType::I64);
    switch (number(0, 4)) {
      case 0: break;
      case 1: tensor.shape = {number(0, 3), number(0, 9)}; break;
      case 2: tensor.shape = {number(1, 3) * 4096}; break;
      case 3: tensor.shape = {number(1, 30), number(1, 999)}; break;
      default: tensor.shape = {257, 4096 - number(0, 40)};
    }
    tensors.push_back(tensor);
  }
  return model_of(std::move(tensors));
}

std::size_t width_of(const TensorInfo& tensor) {
  return element_bytes(tensor.dtype);
}

/// Changes nothing, some, a stretch, or everything; also bits that are no other value (a sign of zero, a NaN's
/// payload).
void change(Weights& weights) {
  for (auto& bytes : weights) {
    if (bytes.empty()) continue;
    switch (number(0, 3)) {
      case 0: break;
      case 1:
        for (std::uint64_t count = number(1, 50); count > 0; --count)
          bytes[number(0, bytes.size() - 1)] ^= static_cast<std::byte>(1U << number(0, 7));
        break;
      case 2: {
        const std::uint64_t begin = number(0, bytes.size() - 1),
                            end = number(begin, std::min(begin + 20000, bytes.size()));
        for (std::uint64_t i = begin; i < end; ++i) bytes[i] ^= static_cast<std::byte>(number(0, 255));
        break;
      }
      default: bytes = harness::random_bytes(bytes.size(), number(0, 1U << 30));
    }
  }
}

std::uint64_t count_changes(const Model& model, const Weights& before, const Weights& after) {
  std::uint64_t count = 0;
  for (std::size_t p = 0; p < before.size(); ++p) {
    const std::size_t width = width_of(model.parameters[p].info);
    for (std::size_t at = 0; at < before[p].size(); at += width)
      count += std::memcmp(&before[p][at], &after[p][at], width) != 0 ? 1 : 0;
  }
  return count;
}

RC_GTEST_FIXTURE_PROP(DeltaTest, EveryRangeOfEveryVersionIsRight, ()) {
  const Model model = random_model();
  std::vector<Weights> versions(1);
  for (const auto& rule : model.parameters)
    versions[0].push_back(harness::random_bytes(rule.info.size_bytes().value(), number(0, 1U << 30)));
  write_whole("0.h5", model, versions[0]);
  const std::uint64_t deltas = number(1, 4);
  for (std::uint64_t i = 1; i <= deltas; ++i) {
    versions.push_back(versions.back());
    change(versions.back());
    const auto summary = write_delta(fmt::format("{}.h5", i), fmt::format("{}.h5", i - 1), model, versions.back());
    RC_ASSERT(summary.changed_elements == count_changes(model, versions[i - 1], versions[i]));
    RC_ASSERT(summary.digests == harness::digests_of(versions[i]));
  }
  RC_ASSERT(files().size() == deltas + 1);
  for (std::uint64_t i = 0; i <= deltas; ++i) {
    const auto snapshot = Snapshot::open(path(fmt::format("{}.h5", i)));
    RC_ASSERT(snapshot.chain().size() == i + 1);
    RC_ASSERT(snapshot.version() == (i == 0 ? 1U : 2U));
    RC_ASSERT(read_all(snapshot, model) == versions[i]);
    for (std::size_t p = 0; p < model.parameters.size(); ++p) {
      const auto& whole = versions[i][p];
      const auto index = index_of(snapshot, model.parameters[p].info.name);
      RC_ASSERT(snapshot.claimed_digests()[index] == digest_bytes(whole, 0));
      for (int reads = 0; reads < 20; ++reads) {
        const std::uint64_t offset = number(0, whole.size()), size = number(0, whole.size() - offset);
        std::vector<std::byte> part(reads % 2 == 0 ? size : std::min<std::uint64_t>(size, 40));
        snapshot.read(index, offset, part);
        RC_ASSERT(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(offset)));
      }
    }
  }
}

/// Two parameters of two blocks, and what a delta may be asked for.
class DeltaWriterTest : public DeltaTest {
 protected:
  DeltaWriterTest() {
    after_[0][2] ^= std::byte{1};
    write_whole("0.h5", model_, before_);
  }
  static std::vector<TensorInfo> tensors() {
    return {{"a.weight", DType::BF16, {2, 4096}}, {"b.weight", DType::F32, {5000}}};
  }
  Error refusal(std::vector<TensorInfo> tensors) const {
    const Model model = model_of(std::move(tensors));
    const Error error = error_of([&] { write_delta("1.h5", "0.h5", model, harness::model_bytes(model, 1)); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(path("0.h5")), HasSubstr("the new version")));
    EXPECT_EQ(files(), (std::set<std::string>{"0.h5"}));
    return error;
  }

  const Model model_ = model_of(tensors());
  const Weights before_ = harness::model_bytes(model_, 1);
  Weights after_ = before_;
};

TEST_F(DeltaWriterTest, BitsCountAndNotValues) {
  const Model model = model_of({{"a", DType::F32, {4}}});
  Weights before = {std::vector<std::byte>(16)}, after = before;
  const auto put = [](Weights& weights, std::size_t element, std::uint32_t bits) {
    std::memcpy(weights[0].data() + 4 * element, &bits, 4);
  };
  put(after, 0, 0x80000000);   // -0
  put(before, 1, 0x7fc00000);  // NaN
  put(after, 1, 0x7fc00000);   // the same
  put(before, 2, 0x7fc00000);
  put(after, 2, 0x7fc00001);  // another payload
  write_whole("zero.h5", model, before);
  EXPECT_EQ(write_delta("one.h5", "zero.h5", model, after).changed_elements, 2U);
  EXPECT_EQ(read_all(Snapshot::open(path("one.h5")), model), after);
}

TEST_F(DeltaWriterTest, NothingChangedIsADeltaToo) {
  const auto summary = write_delta("1.h5", "0.h5", model_, before_);
  EXPECT_EQ(summary.changed_elements, 0U);
  EXPECT_EQ(summary.delta_bytes, 0U);
  const auto snapshot = Snapshot::open(path("1.h5"));
  EXPECT_EQ(read_all(snapshot, model_), before_);
  EXPECT_EQ(snapshot.claimed_digest(), Snapshot::open(path("0.h5")).claimed_digest());
}

TEST_F(DeltaWriterTest, AllOfItCanChange) {
  const Weights other = harness::model_bytes(model_, 99);
  const auto summary = write_delta("1.h5", "0.h5", model_, other);
  EXPECT_EQ(summary.elements, 13192U);
  EXPECT_GT(summary.changed_elements, 13000U);
  EXPECT_EQ(read_all(Snapshot::open(path("1.h5")), model_), other);
}

TEST_F(DeltaWriterTest, ABaseOfOtherTensorsIsRefusedNamingTheFirst) {
  auto other = tensors();
  other[1].shape = {2500, 2};
  EXPECT_THAT(refusal(other).what(), HasSubstr("b.weight is F32 [2500, 2], in the base F32 [5000]"));
  other = tensors();
  other[0].dtype = DType::F16;
  other[1].shape = {1};
  EXPECT_THAT(refusal(other).what(), HasSubstr("a.weight is F16 [2, 4096], in the base BF16 [2, 4096]"));
  other = tensors();
  other[0].name = "c.weight";
  EXPECT_THAT(refusal(other).what(), HasSubstr("only the base has a.weight"));
  other = tensors();
  other.push_back({"aa.weight", DType::BF16, {1}});
  EXPECT_THAT(refusal(other).what(), HasSubstr("the base has no aa.weight"));
  other = tensors();
  other.pop_back();
  EXPECT_THAT(refusal(other).what(), HasSubstr("only the base has b.weight"));
}

TEST_F(DeltaWriterTest, TheBaseMustBeBeside) {
  std::filesystem::create_directory(path("sub"));
  auto error = error_of([&] { write_delta("sub/1.h5", "0.h5", model_, after_); });
  EXPECT_EQ(error.code(), ExitCode::usage);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("0.h5")), HasSubstr("not in the folder of")));
  EXPECT_TRUE(std::filesystem::is_empty(path("sub")));
  // A link from elsewhere to what is here is as good; a link here is not what the delta remembers.
  std::filesystem::create_symlink("../0.h5", path("sub/link.h5"));
  write_delta("1.h5", "sub/link.h5", model_, after_);
  std::filesystem::create_symlink("1.h5", path("latest.h5"));
  write_delta("2.h5", "latest.h5", model_, before_);
  std::filesystem::remove(path("latest.h5"));
  std::filesystem::create_symlink("2.h5", path("latest.h5"));
  EXPECT_EQ(Snapshot::open(path("latest.h5")).chain(),
            (std::vector<std::string>{path("latest.h5"), path("1.h5"), path("0.h5")}));
  EXPECT_EQ(read_all(Snapshot::open(path("2.h5")), model_), before_);
}

TEST_F(DeltaWriterTest, DoesNotReplaceWhatItIsMadeOf) {
  write_delta("1.h5", "0.h5", model_, after_);
  for (const char* name : {"0.h5", "1.h5"}) {
    const auto error = error_of([&] { write_delta(name, "1.h5", model_, before_); });
    EXPECT_EQ(error.code(), ExitCode::cant_create) << name;
    EXPECT_THAT(error.what(), HasSubstr("is made of it"));
  }
  EXPECT_EQ(read_all(Snapshot::open(path("1.h5")), model_), after_);
}

TEST_F(DeltaWriterTest, ContentThatChangesMeanwhileIsNoticed) {
  std::atomic<int> reads = 0;
  const auto content = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    const auto& version = ++reads > 2 ? before_ : after_;  // two parameters are compared, then one is written
    std::copy_n(version[index].begin() + static_cast<std::ptrdiff_t>(offset), destination.size(), destination.begin());
  };
  const auto base = Snapshot::open(path("0.h5"));
  const auto error = error_of([&] { write_delta_snapshot(path("1.h5"), base, model_, "it", content, {2, {}, {}}); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.what(), HasSubstr("a.weight changed while it was read"));
  EXPECT_EQ(files(), (std::set<std::string>{"0.h5"}));
}

}  // namespace
}  // namespace weightcast
