// The manifest: what the ranks of a group tell each other before a byte moves, and what they make of nonsense.
#include "weightcast/update/manifest.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Manifest sample() {
  Manifest manifest;
  manifest.plan_digest = "00112233445566778899aabbccddeeff";
  manifest.settings = {
      {"tp", "2"}, {"method", "sharded"}, {"mpi", "a \"library\"\n\twith 100 % of everything: \\ \xc3\xa9 \x01"}};
  manifest.parameters = {{"model.embed_tokens.weight", DType::BF16, {128256, 2048}},
                         {"model.norm.weight", DType::F32, {2048}},
                         {"scalar", DType::F8_E4M3, {}},
                         {"huge", DType::I64, {18446744073709551615U, 0}}};
  return manifest;
}

TEST(ManifestJson, IsReadAsItWasWritten) {
  EXPECT_EQ(parse_manifest(to_json(sample())), sample());
  EXPECT_EQ(parse_manifest(to_json(Manifest{})), Manifest{});
  for (int i = 0; i < dtype_count; ++i) {
    Manifest manifest;
    manifest.parameters = {{"x", static_cast<DType>(i), {1, 2, 3}}};
    EXPECT_EQ(parse_manifest(to_json(manifest)), manifest) << i;
  }
}

TEST(ManifestJson, MayBeSpacedAndOrderedOtherwise) {
  const auto manifest =
      parse_manifest(R"( { "parameters" : [ [ "x" , "U8" , [ 3 , 4 ] ] ] , "settings" : { "b" : "2", "a" : "1" } ,
                                           "plan_digest" : "d" , "schema" : "weightcast.manifest/1" } )");
  Manifest expected;
  expected.plan_digest = "d";
  expected.settings = {{"a", "1"}, {"b", "2"}};
  expected.parameters = {{"x", DType::U8, {3, 4}}};
  EXPECT_EQ(manifest, expected);
}

TEST(ManifestJson, NonsenseIsRefusedAndItsPlaceNamed) {
  const auto with = [](const std::string& text) { return R"({"schema":"weightcast.manifest/1",)" + text + "}"; };
  const std::pair<std::string, const char*> table[] = {
      {"", "byte"},
      {"null", "null"},
      {"3", "number"},
      {"\"text\"", "string"},
      {"[]", "array"},
      {"[[[[]]]]", "array"},
      {"{", "byte 1"},
      {"{}x", "byte"},
      {R"({"schema":"weightcast.manifest/2"})", "weightcast.manifest/2"},
      {R"({"schema":""})", "schema"},
      {R"({"schema":1})", "number"},
      {R"({"schema":["weightcast.manifest/1"]})", "array"},
      {R"({"schema":{"weightcast.manifest/1":"x"}})", "object"},
      {with(R"("unknown":"x")"), "unknown"},
      {with(R"("schema":"weightcast.manifest/1")"), "twice"},
      {with(R"("plan_digest":null)"), "null"},
      {with(R"("plan_digest":true)"), "boolean"},
      {with(R"("settings":"x")"), "string"},
      {with(R"("settings":["x"])"), "array"},
      {with(R"("settings":{"a":1})"), "number"},
      {with(R"("settings":{"a":["x"]})"), "array"},
      {with(R"("settings":{"a":{"b":"x"}})"), "object"},
      {with(R"("settings":{"a":"x","a":"y"})"), "twice"},
      {with(R"("parameters":"x")"), "string"},
      {with(R"("parameters":{"a":"x"})"), "object"},
      {with(R"("parameters":["x"])"), "string"},
      {with(R"("parameters":[1])"), "number"},
      {with(R"("parameters":[{"name":"x"}])"), "object"},
      {with(R"("parameters":[[]])"), "[name, dtype, shape]"},
      {with(R"("parameters":[["x"]])"), "[name, dtype, shape]"},
      {with(R"("parameters":[["x","U8"]])"), "[name, dtype, shape]"},
      {with(R"("parameters":[["x","U9",[1]]])"), "U9"},
      {with(R"("parameters":[["x",[1],"U8"]])"), "shape"},
      {with(R"("parameters":[[[1],"x","U8"]])"), "shape"},
      {with(R"("parameters":[["x","U8",[1],[2]]])"), "shape"},
      {with(R"("parameters":[["x","U8",[1],"y"]])"), "string"},
      {with(R"("parameters":[["x","U8","y"]])"), "string"},
      {with(R"("parameters":[["x","U8",1]])"), "number"},
      {with(R"("parameters":[["x","U8",[-1]]])"), "number"},
      {with(R"("parameters":[["x","U8",[1.5]]])"), "number"},
      {with(R"("parameters":[["x","U8",[18446744073709551616]]])"), "64 bits"},
      {with(R"("parameters":[["x","U8",["1"]]])"), "string"},
      {with(R"("parameters":[["x","U8",[[1]]]])"), "array"},
      {with(R"("parameters":[["x","U8",[1]]],"parameters":[])"), "twice"},
      {"{\"schema\":\"weightcast.manifest/1\",\"settings\":{\"a\":\"\xff\"}}", "byte"},
      {std::string(100'000, '['), "array"},
      {std::string("{\"schema\":\"weightcast.manifest/1\"}\0", 36), "NUL"},
  };
  for (const auto& [text, fragment] : table) {
    const auto error = harness::error_of([&] { parse_manifest(text); });
    EXPECT_EQ(error.code(), ExitCode::bad_data) << text;
    EXPECT_THAT(error.what(), AllOf(HasSubstr("manifest"), HasSubstr(fragment))) << text;
  }
}

TEST(ManifestJson, EveryTruncationIsRefused) {
  const auto whole = to_json(sample());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse_manifest(std::string_view(whole).substr(0, size)), Error) << size;
  }
}

TEST(ManifestDifference, OfEqualOnesIsNothing) {
  EXPECT_EQ(first_difference(sample(), sample()), "");
}

TEST(ManifestDifference, IsNamedWithBothValues) {
  struct Case {
    std::function<void(Manifest&)> change;
    std::string expected;
  };
  const Case table[] = {
      {[](Manifest& m) { m.settings["method"] = "broadcast"; }, "settings.method is sharded here and broadcast there"},
      {[](Manifest& m) { m.settings.erase("tp"); }, "settings.tp is 2 here and missing there"},
      {[](Manifest& m) { m.settings["new"] = "1"; }, "there are settings unknown here"},
      {[](Manifest& m) { m.parameters[1].name = "lm_head.weight"; },
       "parameter 1 is model.norm.weight here and lm_head.weight there"},
      {[](Manifest& m) { m.parameters[1].dtype = DType::F16; },
       "parameter model.norm.weight is F32 [2048] here and F16 [2048] there"},
      {[](Manifest& m) {
         m.parameters[0].shape = {2048, 128256};
       },
       "parameter model.embed_tokens.weight is BF16 [128256, 2048] here and BF16 [2048, 128256] there"},
      {[](Manifest& m) { m.parameters.pop_back(); }, "the number of parameters is 4 here and 3 there"},
      {[](Manifest& m) {
         m.parameters.push_back({"more", DType::U8, {1}});
       },
       "the number of parameters is 4 here and 5 there"},
      {[](Manifest& m) { m.plan_digest = "ff"; }, "plan_digest is 00112233445566778899aabbccddeeff here and ff there"},
      {[](Manifest& m) { m.settings["method"] = "\x1b[31m"; }, "settings.method is sharded here and \\x1b[31m there"},
  };
  for (const auto& [change, expected] : table) {
    auto theirs = sample();
    change(theirs);
    EXPECT_EQ(first_difference(sample(), theirs), expected);
    EXPECT_NE(first_difference(theirs, sample()), "") << expected;
  }
}

}  // namespace
}  // namespace weightcast
