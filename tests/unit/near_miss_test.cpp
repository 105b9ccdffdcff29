// What is taken for a misspelt option, and what for somebody else's variable.
#include "weightcast/core/near_miss.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>
#include <vector>

#include "commands/commands.hpp"

namespace weightcast {
namespace {

using ::testing::HasSubstr;

const std::set<std::string> names = {"tp", "dp", "json", "trace", "timeout", "transport", "shard-size", "print-config"};

TEST(NearMiss, SlipsAndAbbreviations) {
  const std::vector<std::pair<std::string, std::string>> slips = {{"TIMOUT", "timeout"},
                                                                  {"TIMEUOT", "timeout"},
                                                                  {"timeouts", "timeout"},
                                                                  {"time-out", "timeout"},
                                                                  {"TIMEOUT", "timeout"},
                                                                  {"tineput", "timeout"},
                                                                  {"TIME", "timeout"},
                                                                  {"SHARDSIZE", "shard-size"},
                                                                  {"shard_size", "shard-size"},
                                                                  {"SHARD", "shard-size"},
                                                                  {"trase", "trace"},
                                                                  {"josn", "json"},
                                                                  {"jsn", "json"},
                                                                  {"TP", "tp"},
                                                                  {"trans", "transport"},
                                                                  {"print_conf", "print-config"}};
  for (const auto& [word, name] : slips) EXPECT_EQ(near_miss(word, names), name) << word;
}

TEST(NearMiss, OthersAreNot) {
  for (const auto* word :
       {"", "t", "ti", "pt", "pp", "tpp", "tp_size", "jn", "js", "nosj", "tree", "time-limit", "homes", "root",
        "shard-size-limit", "trace-port", "transport-service-host", "library", "tienput"})
    EXPECT_EQ(near_miss(word, names), std::nullopt) << word;
  EXPECT_EQ(near_miss(std::string(100'000, 't'), names), std::nullopt);
}

TEST(NearMiss, TheNearestIsNamed) {
  EXPECT_EQ(near_miss("readrs", {"header", "readers"}), "readers");
  EXPECT_EQ(near_miss("trace", {"trade", "trace"}), "trace");
  EXPECT_EQ(near_miss("tra", {"trace", "train-first", "tri"}), "tri");
}

TEST(NearMiss, HintsNameIt) {
  EXPECT_EQ(did_you_mean("timout", names, "--", "see --help"), "did you mean --timeout? see --help");
  EXPECT_EQ(did_you_mean("pigeon", names, "--", "see --help"), "see --help");
}

/// All variables that Kubernetes makes for a service.
std::vector<std::string> service_variables(const std::string& service) {
  std::vector<std::string> variables;
  for (const auto* end : {"SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "SERVICE_PORT_GRPC_WEB", "PORT",
                          "PORT_80_TCP", "PORT_80_TCP_PROTO", "PORT_80_TCP_PORT", "PORT_80_TCP_ADDR", "PORT_65535_UDP"})
    variables.push_back(service + end);
  return variables;
}

TEST(NearMiss, NoOptionLooksLikeAServiceOfKubernetes) {
  auto services = known_option_names();
  services.insert({"trainer", "engine", "svc", "api"});
  auto all = service_variables("");
  for (const auto& service : services) {
    for (const auto& variable : service_variables(service + "_")) all.push_back(variable);
  }
  for (const auto& variable : all) EXPECT_EQ(near_miss(variable, known_option_names()), std::nullopt) << variable;
}

RC_GTEST_PROP(NearMissProperty, OneSlipInAnyOptionIsFound, ()) {
  const auto known = known_option_names();
  const auto name = *rc::gen::elementOf(std::vector<std::string>(known.begin(), known.end()));
  RC_PRE(name.size() >= 3);
  auto word = name;
  const auto at = *rc::gen::inRange<std::size_t>(0, name.size() - 1);
  const auto letter = static_cast<char>(*rc::gen::inRange<int>('a', 'z' + 1));
  switch (*rc::gen::inRange(0, 4)) {
    case 0: word.erase(at, 1); break;
    case 1: word.insert(at, 1, letter); break;
    case 2: word[at] = letter; break;
    default: std::swap(word[at], word[at + 1]);
  }
  RC_ASSERT(near_miss(word, known).has_value());
}

RC_GTEST_PROP(NearMissProperty, WhatHasNoLettersInCommonIsNot, ()) {
  const auto word = *rc::gen::container<std::string>(rc::gen::inRange('0', '9'));
  RC_ASSERT(!near_miss(word, known_option_names()));
}

}  // namespace
}  // namespace weightcast
