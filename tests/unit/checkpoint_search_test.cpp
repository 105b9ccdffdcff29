// What of a folder is taken for a checkpoint, and what is refused or only mentioned.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "weightcast/checkpoint/checkpoint.hpp"
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
using ::testing::IsEmpty;

const std::string index_name = "model.safetensors.index.json";

class Search : public harness::FolderTest {
 protected:
  Search() { fs::create_directory(model_); }

  void put(const fs::path& name, const std::string& text) const {
    fs::create_directories((model_ / name).parent_path());
    std::ofstream(model_ / name, std::ios::binary) << text;
  }
  /// A file of one-byte tensors of these names and values.
  void put_tensors(const fs::path& name, const std::vector<std::string>& names, char value = 'x') const {
    std::vector<TensorInfo> infos;
    for (const auto& tensor : names) infos.push_back({tensor, DType::U8, {1}});
    put(name, make_safetensors_header(infos, {}) + std::string(names.size(), value));
  }
  void put_index(const WeightMap& weight_map, const std::string& name = index_name) const {
    put(name, make_sharded_index(weight_map, weight_map.size()));
  }
  /// Shards 1 and 2 with an index.
  void put_shards(char value = 'x') const {
    put_tensors("model-00001-of-00002.safetensors", {"a"}, value);
    put_tensors("model-00002-of-00002.safetensors", {"b"}, value);
    put_index({{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}});
  }

  /// "a=x b=x", and the notes.
  std::string content(const fs::path& name = "") {
    const auto checkpoint = Checkpoint::open(name.empty() ? model_ : model_ / name);
    notes_ = checkpoint.notes();
    std::string text;
    for (std::size_t i = 0; i < checkpoint.tensors().size(); ++i) {
      std::byte value{};
      checkpoint.read(i, 0, std::span(&value, 1));
      text += fmt::format("{}{}={}", i == 0 ? "" : " ", checkpoint.tensors()[i].name, static_cast<char>(value));
    }
    return text;
  }
  std::string refusal(ExitCode code = ExitCode::bad_data, const fs::path& name = "") const {
    const auto error = error_of([&] { Checkpoint::open(name.empty() ? model_ : model_ / name); });
    EXPECT_EQ(error.code(), code) << error.what();
    return std::string(error.what()) + "\n" + error.hint();
  }

  const fs::path model_ = folder_ / "model";
  std::vector<std::string> notes_;
};

TEST_F(Search, AStaleFileBesideShardsIsRefusedAndChosenByName) {
  put_shards('n');
  put_tensors("model.safetensors", {"a", "b"}, 'o');
  EXPECT_THAT(refusal(), AllOf(HasSubstr("two checkpoints, model.safetensors.index.json and model.safetensors: "),
                               HasSubstr("they differ in a"), HasSubstr("name the one that you mean")));
  EXPECT_EQ(content("model.safetensors"), "a=o b=o");
  EXPECT_EQ(content(index_name), "a=n b=n");
  put_tensors("model.safetensors", {"a", "b", "c"}, 'n');
  EXPECT_THAT(refusal(), HasSubstr("they differ in c"));
  put_tensors("model.safetensors", {"b"}, 'n');
  EXPECT_THAT(refusal(), HasSubstr("they differ in a"));
}

TEST_F(Search, TheSameTwiceIsTaken) {
  put_shards();
  put_tensors("model.safetensors", {"a", "b"});
  EXPECT_EQ(content(), "a=x b=x");
  EXPECT_THAT(notes_, ElementsAre("model.safetensors beside it holds the same"));
  put_index({{"a", "model.safetensors"}, {"b", "model.safetensors"}});  // of the single file
  fs::remove(model_ / "model-00001-of-00002.safetensors");
  EXPECT_EQ(content(), "a=x b=x");
}

TEST_F(Search, AnotherThatCannotBeReadIsRefusedToo) {
  put_tensors("model.safetensors", {"a", "b"});
  put(index_name, "not even JSON");
  EXPECT_THAT(refusal(), HasSubstr("two checkpoints, model.safetensors and model.safetensors.index.json: "));
  put_shards();
  fs::remove(model_ / "model-00002-of-00002.safetensors");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("two checkpoints"), HasSubstr("model-00002-of-00002.safetensors")));
  fs::remove(model_ / index_name);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("two checkpoints, model.safetensors and model-*-of-00002.safetensors: "),
                               HasSubstr("is missing: model-00002-of-00002.safetensors")));
  EXPECT_EQ(content("model.safetensors"), "a=x b=x");
}

TEST_F(Search, ShardsWithoutAnIndexMustBeWholeAndOfOneMind) {
  put_shards();
  fs::remove(model_ / index_name);
  EXPECT_EQ(content(), "a=x b=x");
  put_tensors("model-00002-of-00002.safetensors", {"a", "b"});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("a is in model-00001-of-00002.safetensors and in model-00002")));
  fs::remove(model_ / "model-00001-of-00002.safetensors");
  EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("is missing: model-00001-of-00002.safetensors"));
  put_tensors("model-00001-of-00001.safetensors", {"a"});
  EXPECT_THAT(refusal(), HasSubstr("two checkpoints"));
}

TEST_F(Search, ShardsLeftOverBesideAnIndex) {
  put_shards();
  put_tensors("model-00003-of-00003.safetensors", {"c"});
  EXPECT_EQ(content(), "a=x b=x");
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("model-00003-of-00003.safetensors is not in the index")));
  put_tensors("model-00001-of-00001.safetensors", {"a", "b"}, 'y');  // this is a whole one
  EXPECT_THAT(refusal(), HasSubstr("and model-*-of-00001.safetensors: they differ in a"));
}

TEST_F(Search, NamesThatAreAlmostThoseOfShards) {
  for (const auto* name : {"model-0-of-1.safetensors", "model-2-of-1.safetensors", "model-1-of-.safetensors",
                           "model--of-1.safetensors", "other-1-of-1.safetensors", "-1-of-1.safetensors",
                           "model-1-of-99999999999999999999.safetensors", "model-x1-of-1.safetensors"}) {
    put_tensors(name, {"a"});
    EXPECT_THAT(refusal(ExitCode::no_input), HasSubstr("name the file")) << name;
    EXPECT_EQ(content(name), "a=x");
    fs::remove(model_ / name);
  }
}

TEST_F(Search, Consolidated) {
  put_tensors("consolidated.safetensors", {"a"});
  EXPECT_EQ(content(), "a=x");
  EXPECT_THAT(notes_, ElementsAre("read from consolidated.safetensors"));
  put_tensors("model.safetensors", {"a"}, 'y');
  EXPECT_THAT(refusal(), HasSubstr("model.safetensors and consolidated.safetensors: they differ in a"));
  put_tensors("consolidated.safetensors", {"tok_embeddings.weight"});  // of the authors of Llama and Mistral
  EXPECT_EQ(content(), "a=y");
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("another format")));
}

TEST_F(Search, TheIndexIsTheListOfWhatCounts) {
  put_shards();
  put_index({{"b", "model-00002-of-00002.safetensors"}});
  put_tensors("model-00002-of-00002.safetensors", {"b", "extra"});
  EXPECT_EQ(content(), "b=x");
  EXPECT_THAT(notes_,
              ElementsAre(HasSubstr("1 tensors that the index does not list were not read, the first is extra")));
}

TEST_F(Search, AWrongTotalSizeIsMentioned) {
  put_shards();
  EXPECT_EQ(content(), "a=x b=x");
  EXPECT_THAT(notes_, IsEmpty());
  put(index_name, make_sharded_index({{"a", "model-00001-of-00002.safetensors"}}, 7));
  EXPECT_EQ(content(), "a=x");
  EXPECT_THAT(notes_,
              ElementsAre(HasSubstr("total_size in model.safetensors.index.json is 7, but the tensors have 1")));
}

TEST_F(Search, OneOfATieNeedNotBeWritten) {
  put_tensors("1.safetensors", {"model.embed_tokens.weight"});
  const WeightMap both = {{"lm_head.weight", "1.safetensors"}, {"model.embed_tokens.weight", "1.safetensors"}};
  put_index(both);
  EXPECT_EQ(content(), "model.embed_tokens.weight=x");
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("lists lm_head.weight, which was not written")));
  put_tensors("1.safetensors", {"lm_head.weight"});
  EXPECT_EQ(content(), "lm_head.weight=x");
  put_tensors("1.safetensors", {});
  EXPECT_THAT(refusal(), HasSubstr("does not hold lm_head.weight"));
  put_tensors("1.safetensors", {"model.embed_tokens.weight"});
  put_index({{"model.norm.weight", "1.safetensors"}, {"model.embed_tokens.weight", "1.safetensors"}});
  EXPECT_THAT(refusal(), HasSubstr("does not hold model.norm.weight"));
}

TEST_F(Search, ShardsMayLieInFoldersOfTheFolderOnly) {
  put_tensors("shards/1.safetensors", {"a"});
  put_index({{"a", "shards/1.safetensors"}});
  EXPECT_EQ(content(), "a=x");
  put_tensors("../blob", {"a"}, 'l');
  fs::remove(model_ / "shards/1.safetensors");
  fs::create_symlink("../../blob", model_ / "shards/1.safetensors");  // as in a Hub cache
  EXPECT_EQ(content(), "a=l");
  fs::remove_all(model_ / "shards");
  put_tensors("../elsewhere/1.safetensors", {"a"});
  fs::create_directory_symlink("../elsewhere", model_ / "shards");
  EXPECT_THAT(refusal(), HasSubstr("a link out of this one"));
  fs::remove(model_ / "shards");
  put_tensors("real/1.safetensors", {"a"}, 'r');
  fs::create_directory_symlink("real", model_ / "shards");
  EXPECT_EQ(content(), "a=r");
  put_tensors("../model2/1.safetensors", {"a"});  // a neighbour whose name begins as the folder's does
  fs::remove(model_ / "shards");
  fs::create_directory_symlink("../model2", model_ / "shards");
  EXPECT_THAT(refusal(), HasSubstr("a link out of this one"));
}

TEST_F(Search, AnAdapterIsNotAModel) {
  put("adapter_config.json", "{}");
  put_tensors("adapter_model.safetensors", {"lora"});
  EXPECT_THAT(refusal(ExitCode::no_input), AllOf(HasSubstr("holds an adapter and no weights"), HasSubstr("merge")));
  put_tensors("model.safetensors", {"a"});
  EXPECT_EQ(content(), "a=x");
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("adapter beside it")));
}

TEST_F(Search, ARepositoryOfAHubCache) {
  const std::string repository = "models--org--name/";
  put_tensors(repository + "snapshots/abc/model.safetensors", {"a"}, '1');
  const auto open = [&] { return content("models--org--name"); };
  EXPECT_EQ(open(), "a=1");
  EXPECT_THAT(notes_, ElementsAre("the snapshot abc"));
  put_tensors(repository + "snapshots/def/model.safetensors", {"a"}, '2');
  EXPECT_THAT(refusal(ExitCode::no_input, "models--org--name"),
              HasSubstr("2 snapshots and no refs/main to choose by: abc, def"));
  put(repository + "refs/main", "def\n");
  EXPECT_EQ(open(), "a=2");
  EXPECT_EQ(Checkpoint::open(model_ / "models--org--name").folder(), (model_ / repository / "snapshots/def").string());
  for (const std::string ref : {"gone", "../snapshots/abc", "", ".."}) {
    put(repository + "refs/main", ref);
    EXPECT_THAT(refusal(ExitCode::no_input, "models--org--name"), HasSubstr("names the snapshot \"" + ref + "\""))
        << ref;
  }
  put_tensors(repository + "model.safetensors", {"a"}, '3');  // a folder that happens to have one called snapshots
  EXPECT_EQ(open(), "a=3");
  fs::remove(model_ / repository / "model.safetensors");
  fs::remove_all(model_ / repository / "snapshots");
  fs::create_directory(model_ / repository / "snapshots");
  fs::remove_all(model_ / repository / "refs");
  EXPECT_THAT(refusal(ExitCode::no_input, "models--org--name"), HasSubstr("has no snapshots"));
}

TEST_F(Search, WhatIsThereInstead) {
  put("pytorch_model.bin", "PK");
  EXPECT_THAT(refusal(ExitCode::no_input),
              AllOf(HasSubstr("holds a PyTorch checkpoint"), HasSubstr("save_pretrained")));
  const std::string file_in_zip = "archive/data.pkl";
  const auto torch_zip =
      "PK\x03\x04" + std::string(22, '\0') + static_cast<char>(file_in_zip.size()) + std::string(3, '\0') + file_in_zip;
  for (const auto& [text, what] : {std::pair<std::string, std::string>{
                                       "version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"},
                                   {"<!DOCTYPE html>\n<html>", "a web page"},
                                   {"\n  <HTML lang=\"en\">", "a web page"},
                                   {"Invalid username or password.", "wanted a login"},
                                   {"Entry not found", "did not find the file"},
                                   {torch_zip, "a PyTorch checkpoint"},
                                   {"PK\x03\x04", "an archive"},
                                   {"GGUF\x03", "a GGUF file"}}) {
    put("model.safetensors", text);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("model.safetensors is a"), HasSubstr(what))) << text;
  }
  put("model.safetensors", "versions differ");
  EXPECT_THAT(refusal(), HasSubstr("not a safetensors file: it begins with the text \"versions differ\""));
  fs::remove(model_ / "model.safetensors");
  put(index_name, "version https://git-lfs.github.com/spec/v1");
  EXPECT_THAT(refusal(), HasSubstr("git lfs pull"));
}

}  // namespace
}  // namespace weightcast
