#include "weightcast/checkpoint/checkpoint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "weightcast/checkpoint/checkpoint_files.hpp"
#include "weightcast/checkpoint/safetensors_header.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using harness::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::byte value(std::size_t tensor, std::uint64_t offset) {
  return static_cast<std::byte>(offset * 13 + offset / 251 + tensor * 101);
}

class CheckpointTest : public harness::FolderTest {
 protected:
  /// A safetensors file of one-byte tensors of these names.
  void put_tensors(const std::string& name, const std::vector<std::string>& tensors) const {
    std::vector<TensorInfo> infos;
    for (const auto& tensor : tensors) infos.push_back({tensor, DType::U8, {1}});
    put(name, make_safetensors_header(infos, {}) + std::string(tensors.size(), 'x'));
  }
  void put_index(const WeightMap& weight_map) const {
    put("model.safetensors.index.json", make_sharded_index(weight_map, 0));
  }

  std::string refusal(ExitCode code = ExitCode::bad_data) const {
    const auto error = error_of([&] { Checkpoint::open(folder_); });
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    const auto checkpoint = Checkpoint::open(folder_);
    for (const auto& tensor : checkpoint.tensors()) result.push_back(tensor.name);
    return result;
  }
};

CheckpointContent small_content() {
  CheckpointContent content;
  content.tensors = {{"z", DType::BF16, {10, 10}},
                     {"b", DType::F32, {25}},
                     {"zero", DType::F32, {0, 4}},
                     {"a", DType::U8, {}},
                     {"m", DType::U8, {300}}};
  content.fill = [](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    for (std::size_t i = 0; i < destination.size(); ++i) destination[i] = value(index, offset + i);
  };
  return content;
}

void expect_content(const std::string& path, const CheckpointContent& content) {
  const auto checkpoint = Checkpoint::open(path);
  ASSERT_EQ(checkpoint.tensors().size(), content.tensors.size());
  for (std::size_t i = 0; i < content.tensors.size(); ++i) {
    const auto at = checkpoint.find(content.tensors[i].name);
    ASSERT_GE(at, 0);
    const auto index = static_cast<std::size_t>(at);
    EXPECT_EQ(checkpoint.tensors()[index], content.tensors[i]);
    std::vector<std::byte> bytes(*content.tensors[i].size_bytes()), expected(bytes.size());
    checkpoint.read(index, 0, bytes);
    content.fill(i, 0, expected);
    EXPECT_EQ(bytes, expected) << content.tensors[i].name;
  }
}

TEST_F(CheckpointTest, OneFileIsWrittenAndRead) {
  const auto content = small_content();
  write_checkpoint(folder_, content, 1 << 20, "{\"x\": 1}", 2);
  EXPECT_EQ(files(), (std::set<std::string>{"config.json", "model.safetensors"}));
  EXPECT_EQ(read_text_file(folder_ / "config.json", 100), "{\"x\": 1}");
  expect_content(folder_, content);
  expect_content(folder_ / "model.safetensors", content);
  EXPECT_THAT(names(), ElementsAre("a", "b", "m", "z", "zero"));
}

TEST_F(CheckpointTest, ShardsAreWrittenAndRead) {
  const auto content = small_content();
  write_checkpoint(folder_, content, 250, "", 3);
  // 200 | 100 + 0 + 1 | 300, which is larger than a shard may be
  EXPECT_EQ(files(), (std::set<std::string>{"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                            "model-00003-of-00003.safetensors", "model.safetensors.index.json"}));
  expect_content(folder_, content);
  const auto index = read_text_file(folder_ / "model.safetensors.index.json", 10'000);
  EXPECT_THAT(index, HasSubstr("\"total_size\": 601"));
  EXPECT_EQ(parse_sharded_index(index, "index").weight_map.at("zero"), "model-00002-of-00003.safetensors");
}

TEST_F(CheckpointTest, NoTensorsAreWrittenAndRead) {
  write_checkpoint(folder_ / "deep" / "folder", {}, 1000, "", 1);
  EXPECT_TRUE(Checkpoint::open(folder_ / "deep" / "folder").tensors().empty());
}

TEST_F(CheckpointTest, FillSeesEachByteOnceInBlocks) {
  CheckpointContent content;
  content.tensors = {{"big", DType::F32, {(2 * checkpoint_block_bytes + 40) / 4}}, {"small", DType::F32, {10}}};
  std::mutex mutex;
  std::map<std::pair<std::size_t, std::uint64_t>, std::size_t> calls;
  content.fill = [&](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    std::fill(destination.begin(), destination.end(), value(index, offset));
    const std::scoped_lock lock(mutex);
    EXPECT_TRUE(calls.emplace(std::pair(index, offset), destination.size()).second);
  };
  std::atomic<std::uint64_t> progress{0};
  write_checkpoint(folder_, content, gibibyte, "", 3, [&](std::uint64_t bytes) { progress += bytes; });
  EXPECT_EQ(calls, (std::map<std::pair<std::size_t, std::uint64_t>, std::size_t>{
                       {{0, 0}, checkpoint_block_bytes},
                       {{0, checkpoint_block_bytes}, checkpoint_block_bytes},
                       {{0, 2 * checkpoint_block_bytes}, 40},
                       {{1, 0}, 40}}));
  EXPECT_EQ(progress, 2 * checkpoint_block_bytes + 80);
  const auto checkpoint = Checkpoint::open(folder_);
  std::vector<std::byte> part(8);  // across the border of two blocks
  checkpoint.read(0, checkpoint_block_bytes - 4, part);
  EXPECT_EQ(part[3], value(0, 0));
  EXPECT_EQ(part[4], value(0, checkpoint_block_bytes));
}

TEST_F(CheckpointTest, AFailureLeavesTheOldCheckpointAlone) {
  const auto content = small_content();
  write_checkpoint(folder_, content, 250, "old", 2);
  const auto before = files();
  auto failing = content;
  failing.tensors.push_back({"extra", DType::U8, {5}});
  failing.fill = [](std::size_t index, std::uint64_t, std::span<std::byte>) {
    if (index == 4) fail(ExitCode::mismatch, "the source broke");
  };
  EXPECT_THROW(write_checkpoint(folder_, failing, 100, "new", 2), Error);
  EXPECT_EQ(files(), before);
  EXPECT_EQ(read_text_file(folder_ / "config.json", 100), "old");
  expect_content(folder_, content);
}

TEST_F(CheckpointTest, NothingOfTheOldFolderIsLeft) {
  auto other = small_content();
  other.tensors = {{"only", DType::U8, {700}}, {"this", DType::U8, {700}}, {"that", DType::U8, {700}}};
  const auto content = small_content();
  put("notes.txt", "mine");
  put("model-old.safetensors", "mine");
  write_checkpoint(folder_, content, 100, "", 1);  // four shards
  write_checkpoint(folder_, other, 1500, "", 1);   // two
  expect_content(folder_, other);
  EXPECT_EQ(files(), (std::set<std::string>{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                            "model.safetensors.index.json"}));
  write_checkpoint(folder_, content, 10'000, "", 1);  // one file
  expect_content(folder_, content);
  EXPECT_EQ(files(), std::set<std::string>{"model.safetensors"});
  write_checkpoint(folder_, other, 1500, "", 1);
  expect_content(folder_, other);
  EXPECT_FALSE(files().contains("model.safetensors"));
}

TEST_F(CheckpointTest, AFolderWithSomethingInItIsLeftAloneUnlessItMayBeReplaced) {
  const auto refusing = [&] { write_checkpoint(folder_, small_content(), 1000, "", 1, {}, Existing::refuse); };
  refusing();  // empty
  expect_content(folder_, small_content());
  put("vocab.json", "mine");
  const auto error = error_of(refusing);
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("model.safetensors"), HasSubstr("vocab.json")));
  EXPECT_THAT(error.hint(), HasSubstr("--force"));
  EXPECT_EQ(files(), (std::set<std::string>{"model.safetensors", "vocab.json"}));
}

TEST_F(CheckpointTest, WriterRefusesTheSameNameTwiceAndAFileAsFolder) {
  CheckpointContent content = small_content();
  content.tensors[1].name = content.tensors[0].name;
  EXPECT_THROW(write_checkpoint(folder_, content, 1000, "", 1), Error);
  EXPECT_TRUE(files().empty());
  put("file", "");
  const auto error = error_of([&] { write_checkpoint(folder_ / "file" / "sub", small_content(), 1000, "", 1); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
}

TEST_F(CheckpointTest, ReadsFromSeveralThreads) {
  const auto content = small_content();
  write_checkpoint(folder_, content, 250, "", 1);
  const auto checkpoint = Checkpoint::open(folder_);
  const auto index = static_cast<std::size_t>(checkpoint.find("m"));
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::uint64_t offset = t; offset < 300; offset += 4) {
          std::byte byte{};
          checkpoint.read(index, offset, std::span(&byte, 1));
          if (byte != value(4, offset)) ++wrong;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(CheckpointTest, ReadingBeyondATensorIsADefectAndAShorterFileBadData) {
  write_checkpoint(folder_, small_content(), 1000, "", 1);
  const auto checkpoint = Checkpoint::open(folder_);
  const auto index = static_cast<std::size_t>(checkpoint.find("m"));
  std::vector<std::byte> bytes(300);
  EXPECT_THROW(checkpoint.read(index, 1, bytes), Error);
  EXPECT_THROW(checkpoint.read(99, 0, bytes), Error);
  fs::resize_file(folder_ / "model.safetensors", fs::file_size(folder_ / "model.safetensors") - 1);
  EXPECT_EQ(error_of([&] { checkpoint.read(index, 0, bytes); }).code(), ExitCode::bad_data);
}

TEST_F(CheckpointTest, FindReturnsMinusOneForUnknownNames) {
  put_tensors("model.safetensors", {"b", "d"});
  const auto checkpoint = Checkpoint::open(folder_);
  EXPECT_EQ(checkpoint.find("d"), 1);
  for (const auto* name : {"", "a", "c", "e"}) EXPECT_EQ(checkpoint.find(name), -1);
  EXPECT_EQ(checkpoint.path(), folder_.string());
}

TEST_F(CheckpointTest, MissingInputIsNamed) {
  EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("is empty"));
  put("config.json", "{}");
  EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("neither model.safetensors nor"));
  fs::create_symlink("nowhere", folder_ / "model.safetensors");
  EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("model.safetensors is a link to nowhere, which is not there"));
  fs::remove_all(folder_);
  EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("No such file"));
}

TEST_F(CheckpointTest, ABadFileIsNamed) {
  put("model.safetensors", "short");
  EXPECT_THAT(refusal(), HasSubstr(folder_.string() + "/model.safetensors is not a safetensors file"));
  put("model.safetensors", "");
  EXPECT_THAT(refusal(), HasSubstr("model.safetensors is empty"));
  put("model.safetensors", std::string(8, '\xff') + "{}");
  EXPECT_THAT(refusal(), HasSubstr("18446744073709551615 bytes is announced"));
}

TEST_F(CheckpointTest, ShardsMayBeLinksAndOtherFilesAreIgnored) {
  fs::create_directory(folder_ / "blobs");
  put_tensors("blobs/abc", {"a"});
  fs::create_symlink("blobs/abc", folder_ / "1.safetensors");
  put_tensors("2.safetensors", {"b"});
  put_tensors("3.safetensors", {"unlisted"});
  put_index({{"a", "1.safetensors"}, {"b", "2.safetensors"}});
  EXPECT_THAT(names(), ElementsAre("a", "b"));
}

TEST_F(CheckpointTest, EachDifferenceBetweenIndexAndShardsIsNamed) {
  put_tensors("1.safetensors", {"a", "moved"});
  put_tensors("2.safetensors", {"b"});
  put_index({{"a", "1.safetensors"}, {"b", "2.safetensors"}, {"moved", "2.safetensors"}, {"missing", "2.safetensors"}});
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("1.safetensors holds moved, which the index says is in 2.safetensors"),
                    HasSubstr("2.safetensors does not hold moved"), HasSubstr("2.safetensors does not hold missing")));
  put_tensors("1.safetensors", {"a", "b"});
  put_index({{"a", "1.safetensors"}, {"b", "2.safetensors"}});
  EXPECT_THAT(refusal(), HasSubstr("1.safetensors holds b, which the index says is in 2.safetensors"));
}

TEST_F(CheckpointTest, ManyDifferencesAreCounted) {
  WeightMap weight_map;
  for (int i = 0; i < 60; ++i) weight_map[fmt::format("t{:02}", i)] = "1.safetensors";
  put_tensors("1.safetensors", {});
  put_index(weight_map);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("t49"), HasSubstr("and 10 more")));
}

TEST_F(CheckpointTest, AMissingOrBadShardIsNamed) {
  put_tensors("1.safetensors", {"a"});
  put_index({{"a", "1.safetensors"}, {"b", "2.safetensors"}});
  EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("1 of the 2 files that it lists are missing: 2.safetensors"));
  put("2.safetensors", "bad");
  EXPECT_THAT(refusal(), HasSubstr("2.safetensors is not a safetensors file"));
}

TEST(ShardedIndex, RefusesFilesThatLeaveTheFolder) {
  for (const auto* file : {"/etc/passwd", "../x", "..", ".", "", "./.", "sub/../../x", "a/..", "a/../b", "x/",
                           "\\u002fx", "//x", "a\\u0000b"}) {
    const auto text = fmt::format(R"({{"weight_map":{{"some.weight":"{}"}}}})", file);
    const auto error = error_of([&] { parse_sharded_index(text, "the index"); });
    EXPECT_EQ(error.code(), ExitCode::bad_data) << file;
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("the index, byte "), HasSubstr("some.weight"), HasSubstr("not a file of this folder")));
  }
  for (const auto* file : {"a..b", "..a", "model.safetensors", "ü", "a b"}) {
    EXPECT_EQ(parse_sharded_index(fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", file), "index").weight_map.at("w"),
              file);
  }
  for (const auto* file : {"sub/x", "./sub/x", "sub//x", "./sub/./x"}) {
    EXPECT_EQ(parse_sharded_index(fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", file), "index").weight_map.at("w"),
              "sub/x");
  }
}

TEST(ShardedIndex, RefusesWhatIsNotAnIndex) {
  for (const auto* json : {"",
                           "[]",
                           "3",
                           "\"weight_map\"",
                           "null",
                           "{}",
                           R"({"metadata":{}})",
                           R"({"weight_map":[]})",
                           R"({"weight_map":["a"]})",
                           R"({"weight_map":null})",
                           R"({"weight_map":"x"})",
                           R"({"weight_map":1})",
                           R"({"weight_map":{"a":1}})",
                           R"({"weight_map":{"a":-1}})",
                           R"({"weight_map":{"a":null}})",
                           R"({"weight_map":{"a":true}})",
                           R"({"weight_map":{"a":{}}})",
                           R"({"weight_map":{"a":["x"]}})",
                           R"({"weight_map":{"a":"x","a":"y"}})",
                           R"({"weight_map":{},"weight_map":{}})",
                           R"({"x":{"weight_map":{"a":"x"}}})",
                           R"({"weight_map":{"a":"x"}} x)",
                           R"({"weight_map":{"a":"x")"}) {
    EXPECT_THROW(parse_sharded_index(json, "index"), Error) << json;
  }
}

TEST(ShardedIndex, IgnoresMetadataAndOtherMembers) {
  const WeightMap expected = {{"w", "x"}};
  for (const auto* json :
       {R"({"weight_map":{"w":"x"}})", R"({"metadata":{"total_size":1.5e9},"weight_map":{"w":"x"}})",
        R"({"metadata":null,"weight_map":{"w":"x"},"z":[1,{"weight_map":{"evil":"/x"}},-2,true]})"}) {
    EXPECT_EQ(parse_sharded_index(json, "index").weight_map, expected) << json;
  }
}

}  // namespace
}  // namespace weightcast
