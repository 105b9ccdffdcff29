// What people have in place of safetensors files: any bytes and names are judged, and none crash.
#include "weightcast/core/foreign.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cctype>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/wrong_path.hpp"

namespace weightcast {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string what(std::string_view start) {
  const auto found = foreign_content(start);
  return found ? std::string(found->what) : "";
}

TEST(ForeignContent, IsKnownByItsMarks) {
  EXPECT_EQ(what("GGUF\3"), "a GGUF file");
  EXPECT_EQ(what("\x80\2\x8a\n"), "a PyTorch checkpoint (a pickle)");
  EXPECT_EQ(what(std::string(257, 'x') + "ustar"), "an archive");
  EXPECT_EQ(what("\n <HTML>"), "a web page");
  EXPECT_EQ(what("\xef\xbb\xbfversion https://git-lfs"), "a Git LFS pointer and not the file itself");
}

TEST(ForeignContent, WhatIsNearItIsNot) {
  EXPECT_EQ(what("gguf"), "");
  EXPECT_EQ(what("\x80\7"), "");
  EXPECT_EQ(what(std::string(256, 'x') + "ustar"), "");
  EXPECT_EQ(what("version https://other"), "");
  EXPECT_EQ(what("{\"weight_map\": {}}"), "");
  EXPECT_EQ(what("\x08\x08\x12\x03\x01\x02\x03"), "");  // a producer's name is text
  EXPECT_EQ(what(""), "");
}

TEST(ForeignFolder, WhoseItIsAndNotWhatItIsMadeOf) {
  EXPECT_EQ(foreign_folder({"global_step10", "zero_to_fp32.py", "x.pt"})->what, "a checkpoint of DeepSpeed");
  EXPECT_EQ(foreign_folder({"consolidated.00.pth", "params.json"})->what, "a checkpoint in Meta's format");
  EXPECT_EQ(foreign_folder({"x.pth"})->what, "a PyTorch checkpoint (a pickle)");
  EXPECT_FALSE(foreign_folder({"config.json", "tokenizer.json", "README.md"}));
  EXPECT_FALSE(foreign_folder({}));
}

RC_GTEST_PROP(ForeignContent, JudgesAnyBytes, (const std::string& rest)) {
  const auto begin = *rc::gen::element<std::string>("", "PK\x03\x04", "\x08\x08\x12", "\x81", "\x80", "\xef\xbb\xbf",
                                                    "{\"error\"", "\x1f\x8b");
  const auto start = begin + rest;
  const auto found = foreign_content(start);
  RC_ASSERT(!found || (!found->what.empty() && !found->hint.empty()));
  RC_ASSERT(!describe_start(start).empty());
  for (const char c : describe_start(start)) RC_ASSERT(c >= ' ' && c <= '~');
}

RC_GTEST_PROP(ForeignFolder, JudgesAnyNames, (const std::set<std::string>& names)) {
  const auto found = foreign_folder(names);
  RC_ASSERT(!found || !found->hint.empty());
}

RC_GTEST_PROP(WrongPath, HasAHintForAnyPath, (const std::string& path)) {
  const auto hint = hint_for_missing(path);
  RC_ASSERT(!hint.empty());
  for (const char c : hint) RC_ASSERT(std::iscntrl(static_cast<unsigned char>(c)) == 0);
}

class WrongPathTest : public harness::FolderTest {};

TEST_F(WrongPathTest, TheFirstPartThatIsNotThereIsNamed) {
  put("model.safetensors", "");
  EXPECT_EQ(hint_for_missing(path("models.safetensors")), "did you mean " + path("model.safetensors") + "?");
  EXPECT_EQ(hint_for_missing(path("another/thing")), "check the path: there is no another in " + folder_.string());
  EXPECT_THAT(hint_for_missing("no-such-organisation/model"), HasSubstr("hf download no-such-organisation/model "));
  EXPECT_THAT(hint_for_missing("no-such-organisation/a/b"), StartsWith("check the path"));
  EXPECT_NO_THROW(expect_there(path("model.safetensors")));
  const auto error = harness::error_of([&] { expect_there(path("model.safetensors/x")); });
  EXPECT_EQ(error.code(), ExitCode::no_input);
}

}  // namespace
}  // namespace weightcast
