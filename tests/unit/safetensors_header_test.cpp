#include "weightcast/checkpoint/safetensors_header.hpp"

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

using ::testing::HasSubstr;

std::string framed(const std::string& json, std::uint64_t announced) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(announced >> (8 * i) & 0xff);
  return file + json;
}
std::string framed(const std::string& json) {
  return framed(json, json.size());
}

/// Parses a file of this JSON and `data_bytes` bytes of data, of which only the header is at hand.
SafetensorsHeader parse(const std::string& json, std::uint64_t data_bytes) {
  const auto file = framed(json);
  return parse_safetensors_header(std::as_bytes(std::span(file)), file.size() + data_bytes);
}

template <typename Action>
std::string refusal(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    return error.what();
  }
  return "accepted";
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{}]}})", name, dtype, shape, offsets);
}

std::string object(const std::vector<std::string>& members) {
  return fmt::format("{{{}}}", fmt::join(members, ","));
}

TEST(SafetensorsHeader, ReadsTensorsInTheOrderOfTheirBytes) {
  const auto json = object({tensor("b", "BF16", "2,3", "4,16"), R"("__metadata__":{"format":"pt"})",
                            tensor("a", "F32", "", "0,4"), tensor("zero", "I64", "0,7", "4,4")});
  const auto header = parse(json, 16);
  ASSERT_EQ(header.entries.size(), 3u);
  EXPECT_EQ(header.entries[0], (SafetensorsEntry{{"a", DType::F32, {}}, 0, 4}));
  EXPECT_EQ(header.entries[1], (SafetensorsEntry{{"zero", DType::I64, {0, 7}}, 4, 4}));
  EXPECT_EQ(header.entries[2], (SafetensorsEntry{{"b", DType::BF16, {2, 3}}, 4, 16}));
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(header.data_offset, 8 + json.size());
}

TEST(SafetensorsHeader, AcceptsWhatIsUnusualButLegal) {
  EXPECT_TRUE(parse("{}", 0).entries.empty());
  EXPECT_TRUE(parse(" \n{} \t\r\n", 0).entries.empty());
  EXPECT_TRUE(parse(R"({"__metadata__":{}})", 0).metadata.empty());
  EXPECT_TRUE(parse(R"({"__metadata__":null})", 0).metadata.empty());
  EXPECT_EQ(parse(R"({"__metadata__":{"step":5,"lr":-1.5e-3,"ema":true,"note":null,"format":"pt"}})", 0).metadata,
            (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(parse(object({tensor("a", "U8", "1", "0,1"), R"("__metadata__":null)"}), 1).entries.size(), 1u);
  EXPECT_EQ(parse(object({tensor("", "U8", "1", "0,1")}), 1).entries[0].info.name, "");
  EXPECT_EQ(parse(object({tensor("a", "U8", "3", "0,3"), tensor("b", "F64", "1", "3,11")}), 11).entries.size(), 2u);
  EXPECT_EQ(parse(object({tensor("a", "U8", "0,18446744073709551615", "0,0")}), 0).entries.size(), 1u);
  EXPECT_EQ(parse(object({tensor("a", "U8", "2305843009213693951", "0,2305843009213693951")}), 2305843009213693951)
                .entries.size(),
            1u);
}

TEST(SafetensorsHeader, KnowsTheWidthOfAll22Dtypes) {
  const std::map<std::string, int> widths = {
      {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},        {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  ASSERT_EQ(widths.size(), static_cast<std::size_t>(dtype_count));
  for (const auto& [name, bits] : widths) {
    const auto bytes = static_cast<std::uint64_t>(bits);  // of 8 elements
    const auto header = parse(object({tensor("a", name, "8", "0," + std::to_string(bytes))}), bytes);
    EXPECT_EQ(weightcast::name(header.entries.at(0).info.dtype), name);
    EXPECT_NE(refusal([&] { parse(object({tensor("a", name, "8", "0," + std::to_string(bytes + 1))}), bytes + 1); }),
              "accepted");
  }
}

TEST(SafetensorsHeader, RefusesABadFrame) {
  const auto refuse = [](const std::string& file, std::uint64_t file_bytes) {
    return refusal([&] { parse_safetensors_header(std::as_bytes(std::span(file)), file_bytes); });
  };
  EXPECT_THAT(refuse("", 0), HasSubstr("too few"));                                           // F1
  EXPECT_THAT(refuse("\x02\0\0\0\0\0\0", 7), HasSubstr("too few"));                           // F1
  EXPECT_THAT(refuse(framed("{}", 100'000'001), 1 << 30), HasSubstr("more than 100000000"));  // F2
  EXPECT_THAT(refuse(framed("{}", UINT64_MAX), UINT64_MAX), HasSubstr("more than"));          // F2
  EXPECT_THAT(refuse(framed("{}", 3), 10), HasSubstr("truncated"));                           // F3
  EXPECT_THAT(refuse(framed("{}", 3), 11), HasSubstr("truncated"));  // the caller did not read all of it
  EXPECT_THAT(refuse(framed("", 0), 8), HasSubstr("byte 8"));        // J1
}

struct Malformed {
  std::string rule, json;
  std::uint64_t data_bytes;
  std::string message;
};

void PrintTo(const Malformed& malformed, std::ostream* stream) {
  *stream << malformed.rule << ' ' << malformed.message;
}

class MalformedHeader : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedHeader, IsRefusedWithTheRuleAndAnOffset) {
  const auto& param = GetParam();
  const auto message = refusal([&] { parse(param.json, param.data_bytes); });
  EXPECT_THAT(message, HasSubstr(param.message)) << param.rule;
  EXPECT_THAT(message, HasSubstr(", byte ")) << param.rule;
}

std::string one(const std::string& value) {
  return R"({"a":)" + value + "}";
}
std::string with(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return one(fmt::format(R"({{"dtype":{},"shape":{},"data_offsets":{}}})", dtype, shape, offsets));
}

INSTANTIATE_TEST_SUITE_P(
    Rules, MalformedHeader,
    testing::Values(
        Malformed{"J1", "{", 0, "byte 9"}, Malformed{"J1", "{}{}", 0, "byte 10"},
        Malformed{"J1", std::string("{}\0", 3), 0, "NUL"}, Malformed{"J1", "\xef\xbb\xbf{}", 0, "byte order mark"},
        Malformed{"J1", R"({"__metadata__":{},})", 0, "byte 27"}, Malformed{"J1", "{}//", 0, "byte 10"},
        Malformed{"J2", "{\"\xff\":{}}", 0, "UTF-8"}, Malformed{"J2", "{\"\xc0\x80\":{}}", 0, "UTF-8"},
        Malformed{"J3", "[]", 0, "an array where the header object"}, Malformed{"J3", "3", 0, "a number where"},
        Malformed{"J3", "\"x\"", 0, "a string where"}, Malformed{"J3", "null", 0, "null where"},
        Malformed{"J3", one("7"), 0, "is a number and not an object"}, Malformed{"J3", one("[]"), 0, "is an array"},
        Malformed{"J3", one("\"x\""), 0, "is a string"}, Malformed{"J3", one("true"), 0, "is a boolean"},
        Malformed{"J3", one("null"), 0, "is null"},
        Malformed{"J3", with("\"U8\"", "[[1]]", "[0,1]"), 1, "nested deeper"},
        Malformed{"J3", with("\"U8\"", "[{}]", "[0,1]"), 1, "nested deeper"},
        Malformed{"J3", with("{}", "[1]", "[0,1]"), 1, "dtype is or holds an object"},
        Malformed{"J3", std::string(1'000'000, '['), 0, "an array where"},
        Malformed{"J4", R"({"__metadata__":"x"})", 0, "\"__metadata__\" is a string"},
        Malformed{"J4", R"({"__metadata__":1})", 0, "a number"},
        Malformed{"J4", R"({"__metadata__":true})", 0, "a boolean"},
        Malformed{"J4", R"({"__metadata__":{"k":[]}})", 0, "an array"},
        Malformed{"J4", R"({"__metadata__":{"k":{}}})", 0, "\"k\" is an object"},
        Malformed{"J5", one("{}"), 0, "has no dtype"},
        Malformed{"J5", one(R"({"dtype":"U8","data_offsets":[0,1]})"), 1, "has no shape"},
        Malformed{"J5", one(R"({"dtype":"U8","shape":[1]})"), 1, "has no data_offsets"},
        Malformed{"J5", with("8", "[1]", "[0,1]"), 1, "dtype is or holds a number"},
        Malformed{"J5", with("[]", "[1]", "[0,1]"), 1, "dtype is or holds an array"},
        Malformed{"J5", with("\"U8\"", "1", "[0,1]"), 1, "shape is or holds a number"},
        Malformed{"J5", with("\"U8\"", "\"1\"", "[0,1]"), 1, "shape is or holds a string"},
        Malformed{"J5", with("\"U8\"", "[\"1\"]", "[0,1]"), 1, "shape is or holds a string"},
        Malformed{"J5", with("\"U8\"", "[1]", "null"), 1, "data_offsets is or holds null"},
        Malformed{"J5", with("\"U8\"", "[0]", "[]"), 0, "data_offsets holds 0 numbers"},
        Malformed{"J5", with("\"U8\"", "[0]", "[0]"), 0, "data_offsets holds 1 numbers"},
        Malformed{"J5", with("\"U8\"", "[0]", "[0,0,0]"), 0, "data_offsets holds 3 numbers"},
        Malformed{"J6", with("\"BF17\"", "[1]", "[0,2]"), 2, "unknown dtype \"BF17\""},
        Malformed{"J6", with("\"bf16\"", "[1]", "[0,2]"), 2, "unknown dtype"},
        Malformed{"J7", with("\"U8\"", "[-1]", "[0,1]"), 1, "negative or not an integer"},
        Malformed{"J7", with("\"U8\"", "[-0]", "[0,0]"), 0, "negative or not an integer"},
        Malformed{"J7", with("\"U8\"", "[1.0]", "[0,1]"), 1, "negative or not an integer"},
        Malformed{"J7", with("\"U8\"", "[1e0]", "[0,1]"), 1, "negative or not an integer"},
        Malformed{"J7", with("\"U8\"", "[18446744073709551616]", "[0,0]"), 0, "64 bits"},
        Malformed{"J7", with("\"U8\"", "[1]", "[0,18446744073709551617]"), 1, "64 bits"},
        Malformed{"L1", with("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "overflows"},
        Malformed{"L1", with("\"F64\"", "[2305843009213693952]", "[0,0]"), 0, "overflows"},
        Malformed{"L2", with("\"F4\"", "[3]", "[0,2]"), 2, "whole number of bytes"},
        Malformed{"L2", with("\"F6_E3M2\"", "[3]", "[0,3]"), 3, "whole number of bytes"},
        Malformed{"L3", with("\"F32\"", "[2]", "[0,7]"), 7, "F32 [2] has 8 bytes"},
        Malformed{"L3", with("\"F32\"", "[2]", "[0,9]"), 9, "F32 [2] has 8 bytes"},
        Malformed{"L3", with("\"U8\"", "[0]", "[1,0]"), 1, "data_offsets [1, 0]"},
        Malformed{"L3", with("\"U8\"", "[2]", "[18446744073709551615,1]"), 1, "data_offsets"},
        Malformed{"L4", with("\"U8\"", "[1]", "[1,2]"), 2, "a hole"},
        Malformed{"L4", object({tensor("a", "U8", "1", "0,1"), tensor("b", "U8", "1", "2,3")}), 3, "a hole"},
        Malformed{"L4", object({tensor("a", "U8", "2", "0,2"), tensor("b", "U8", "2", "1,3")}), 3, "an overlap"},
        Malformed{"L4", object({tensor("a", "U8", "2", "0,2"), tensor("b", "U8", "2", "0,2")}), 2, "an overlap"},
        Malformed{"L4", with("\"F32\"", "[2]", "[0,8]"), 7, "truncated"},
        Malformed{"L4", with("\"F32\"", "[2]", "[0,8]"), 0, "truncated"},
        Malformed{"L4", with("\"F32\"", "[2]", "[0,8]"), 9, "1 bytes follow"},
        Malformed{"L4", "{}", 5, "5 bytes follow"},
        Malformed{"R1", object({tensor("a", "U8", "1", "0,1"), tensor("a", "U8", "1", "0,1")}), 1,
                  "\"a\" appears twice"},
        Malformed{"R1", object({tensor("a", "U8", "1", "0,1"), tensor("\\u0061", "U8", "1", "0,1")}), 1,
                  "appears twice"},
        Malformed{"R1", R"({"__metadata__":{"k":"1","k":"1"}})", 0, "appears twice"},
        Malformed{"R1", R"({"__metadata__":{},"__metadata__":{}})", 0, "appears twice"},
        Malformed{"R1", one(R"({"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]})"), 1, "appears twice"},
        Malformed{"R2", one(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1})"), 1, "unknown field \"x\""},
        Malformed{"R1", R"({"__metadata__":null,"__metadata__":{}})", 0, "appears twice"},
        Malformed{"R3", one(R"(["U8",[1],[0,1]])"), 1, "is an array"},
        Malformed{"R4", with("\"U8\"", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]"),
                  1, "more than 32"}));

TEST(SafetensorsHeader, EveryTruncationIsRefused) {
  const auto file =
      framed(object({tensor("a", "F32", "2", "0,8"), tensor("b", "U8", "1", "8,9")})) + std::string(9, 'x');
  EXPECT_NO_THROW(parse_safetensors_header(std::as_bytes(std::span(file)), file.size()));
  for (std::size_t size = 0; size < file.size(); ++size) {
    EXPECT_THROW(parse_safetensors_header(std::as_bytes(std::span(file).first(size)), size), Error) << size;
  }
}

TEST(SafetensorsHeader, NamesInMessagesAreSafeForATerminal) {
  const auto message = refusal([] { parse(object({tensor("a\\u001b[2J\\n", "U8", "1", "0,2")}), 2); });
  EXPECT_THAT(message, HasSubstr("a\\x1b[2J\\x0a"));
}

RC_GTEST_PROP(SafetensorsHeader, WhatIsWrittenIsRead, ()) {
  std::vector<TensorInfo> tensors;
  const auto count = *rc::gen::inRange(0, 12);
  for (int i = 0; i < count; ++i) {
    const auto dtype = static_cast<DType>(*rc::gen::inRange(0, dtype_count));
    auto shape = *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, 9));
    shape.resize(std::min<std::size_t>(shape.size(), 6));
    shape.push_back(8 * *rc::gen::inRange<std::uint64_t>(0, 5));  // whole bytes
    const auto text = *rc::gen::container<std::string>(rc::gen::inRange<char>(1, 127));
    tensors.push_back({fmt::format("{}{}", text, i), dtype, shape});
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"\"\\\n", "\x01ü"}};
  const auto text = make_safetensors_header(tensors, metadata);
  RC_ASSERT(text.size() % 8 == 0u);
  std::uint64_t data_bytes = 0;
  for (const auto& tensor : tensors) data_bytes += *tensor.size_bytes();
  auto header = parse_safetensors_header(std::as_bytes(std::span(text)), text.size() + data_bytes);
  RC_ASSERT(header.data_offset == text.size());
  RC_ASSERT(header.metadata == metadata);
  RC_ASSERT(header.entries.size() == tensors.size());
  // Zero-sized tensors share their offset with others: compare by name.
  std::map<std::string, SafetensorsEntry> by_name;
  for (const auto& entry : header.entries) by_name[entry.info.name] = entry;
  std::uint64_t begin = 0;
  for (const auto& tensor : tensors) {
    RC_ASSERT((by_name.at(tensor.name) == SafetensorsEntry{tensor, begin, begin + *tensor.size_bytes()}));
    begin += *tensor.size_bytes();
  }
}

TEST(SafetensorsHeader, WriterRefusesWhatTheFormatCannotHold) {
  const std::vector<TensorInfo> reserved = {{"__metadata__", DType::U8, {1}}}, half = {{"a", DType::F4, {1}}};
  EXPECT_THROW(make_safetensors_header(reserved, {}), Error);
  EXPECT_THROW(make_safetensors_header(half, {}), Error);
}

}  // namespace
}  // namespace weightcast
