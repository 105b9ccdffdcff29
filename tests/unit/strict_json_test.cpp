#include "weightcast/core/strict_json.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

using ::testing::HasSubstr;

/// Writes every event down, with its offset.
struct Recorder final : JsonHandler {
  std::string events;
  void add(const std::string& event, std::size_t near) { events += fmt::format("{}@{} ", event, near); }
  void begin_object(std::size_t near) override { add("{", near); }
  void key(const std::string& name, std::size_t near) override { add("key:" + name, near); }
  void end_object(std::size_t near) override { add("}", near); }
  void begin_array(std::size_t near) override { add("[", near); }
  void end_array(std::size_t near) override { add("]", near); }
  void string(const std::string& value, std::size_t near) override { add("string:" + value, near); }
  void unsigned_integer(std::uint64_t value, std::size_t near) override { add(fmt::format("u{}", value), near); }
  void number(double value, std::size_t near) override { add(fmt::format("d{}", value), near); }
  void boolean(bool value, std::size_t near) override { add(value ? "true" : "false", near); }
  void null(std::size_t near) override { add("null", near); }
};

std::string parse(std::string_view text, std::size_t max_depth = 32, std::size_t base = 0) {
  Recorder recorder;
  parse_strict_json(text, recorder, "thing", max_depth, base);
  return recorder.events;
}

std::string refusal(std::string_view text, std::size_t max_depth = 32, std::size_t base = 0) {
  const auto error = harness::error_of([&] { parse(text, max_depth, base); });
  EXPECT_EQ(error.code(), ExitCode::bad_data) << testing::PrintToString(text);
  return error.what();
}

TEST(StrictJson, ReportsEveryEventWithItsOffset) {
  EXPECT_EQ(parse(R"({"a":"x", "b":[true,null,{}]})"),
            "{@1 key:a@4 string:x@8 key:b@13 [@15 true@19 null@24 {@26 }@27 ]@28 }@29 ");
  EXPECT_EQ(parse("\"x\"", 32, 100), "string:x@103 ");
}

TEST(StrictJson, AllowsWhiteSpaceAround) {
  EXPECT_EQ(parse(" \r\n\t{ } \n"), "{@5 }@7 ");
}

TEST(StrictJson, TellsIntegersFromOtherNumbers) {
  EXPECT_EQ(parse("[0,18446744073709551615]"), "[@1 u0@3 u18446744073709551615@24 ]@24 ");
  EXPECT_EQ(parse("[-3]"), "[@1 d-3@4 ]@4 ");
  EXPECT_EQ(parse("[1.5]"), "[@1 d1.5@5 ]@5 ");
  EXPECT_EQ(parse("[1e3]"), "[@1 d1000@5 ]@5 ");
  EXPECT_EQ(parse("[-0]"), "[@1 d0@4 ]@4 ");
}

TEST(StrictJson, RefusesIntegersOver64Bits) {
  EXPECT_THAT(refusal("[18446744073709551616]"), HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(refusal("[-9223372036854775809]"), HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(refusal("[" + std::string(100'000, '9') + "]"), HasSubstr("number overflow"));
  EXPECT_THAT(refusal("[1e999]"), HasSubstr("number overflow"));
}

TEST(StrictJson, RefusesDuplicateKeysInOneObjectOnly) {
  EXPECT_THAT(refusal(R"({"a":1,"b":2,"a":3})"), HasSubstr("byte 16: the key \"a\" appears twice"));
  EXPECT_THAT(refusal(R"({"a":1,"\u0061":3})"), HasSubstr("appears twice"));
  EXPECT_THAT(refusal(R"([{"a":1},{"x":{"a":1,"a":2}}])"), HasSubstr("appears twice"));
  EXPECT_NE(parse(R"({"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]})"), "");
}

TEST(StrictJson, LimitsDepth) {
  EXPECT_NE(parse("[[{}]]", 3), "");
  EXPECT_THAT(refusal("[[{}]]", 2), HasSubstr("thing, byte 3: nested deeper than 2 levels"));
  EXPECT_THAT(refusal(std::string(1'000'000, '[')), HasSubstr("nested deeper than 32 levels"));
  EXPECT_NE(parse("[[],[],{},[[]]]", 3), "");  // siblings do not count
}

TEST(StrictJson, NamesTheOffsetOfASyntaxError) {
  EXPECT_THAT(refusal("{\"a\" 1}"), HasSubstr("thing, byte 5: "));
  EXPECT_THAT(refusal("{\"a\" 1}", 32, 8), HasSubstr("thing, byte 13: "));
  EXPECT_THAT(refusal("[1,2"), HasSubstr("thing, byte 4: "));
  EXPECT_THAT(refusal(""), HasSubstr("thing, byte 0: "));
}

TEST(StrictJson, RefusesWhatIsNotJson) {
  using namespace std::string_literals;
  const std::vector<std::string> texts = {"{",
                                          "}",
                                          "[",
                                          "[1,]",
                                          "{\"a\":1,}",
                                          "{a:1}",
                                          "{'a':1}",
                                          "nul",
                                          "True",
                                          "NaN",
                                          "Infinity",
                                          "01",
                                          "+1",
                                          "1.",
                                          ".5",
                                          "1 2",
                                          "{}{}",
                                          "// comment\n{}",
                                          "{}/**/",
                                          "\"\t\"",
                                          "\"\\x\"",
                                          "\"\\u12\"",
                                          "\"open",
                                          "{}\0"s,
                                          "{}\0rest"s,
                                          "\0{}"s,
                                          "\xef\xbb\xbf{}",
                                          "\"\xff\"",
                                          "\"\xc0\x80\"",
                                          "\"\xed\xa0\x80\"",
                                          "\"\xf4\x90\x80\x80\"",
                                          "\"\xe2\x82\"",
                                          "\"\\ud800\"",
                                          "\"\\udc00\"",
                                          "\xc2\xa0{}"};
  for (const auto& text : texts) refusal(text);
}

TEST(StrictJson, MessagesHoldNoRawBytes) {
  for (const auto& text : {std::string("\"\xff\xfe"), "\"" + std::string(100'000, '\x01'), std::string("{\"\x1b[2J")}) {
    const auto message = refusal(text);
    EXPECT_LT(message.size(), 400u);
    for (const char c : message) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << message;
  }
}

TEST(StrictJson, PassesOnWhatAHookThrows) {
  struct Thrower final : JsonHandler {
    void null(std::size_t) override { fail(ExitCode::config, "no nulls"); }
  } thrower;
  EXPECT_THROW(parse_strict_json("{\"a\":[null]}", thrower, "thing"), Error);
}

TEST(StrictJson, AHandlerMayTakeWhatIsOtherwiseRefused) {
  struct Lenient : JsonHandler {
    bool take_repeated_key(const std::string& name) override { return name != "b"; }
    bool take_large_integer() override { return true; }
    void number(double value, std::size_t) override { last = value; }
    double last = 0;
  } lenient;
  parse_strict_json(R"({"a":1,"a":18446744073709551616})", lenient, "thing");
  EXPECT_EQ(lenient.last, 18446744073709551616.0);
  EXPECT_THROW(parse_strict_json(R"({"b":1,"b":2})", lenient, "thing"), Error);
  EXPECT_THROW(parse_strict_json(R"({"a":1,})", lenient, "thing"), Error);
}

}  // namespace
}  // namespace weightcast
