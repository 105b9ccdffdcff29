#include "options/options.hpp"

#include <gmock/gmock.h>

#include <cstdio>
#include <string>
#include <vector>

#include "commands/commands.hpp"
#include "harness/error_of.hpp"
#include "options/bench_options.hpp"
#include "options/update_options.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

using harness::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const CommandSpec command = {
    .name = "test",
    .arguments = "",
    .summary = "",
    .options = {{"tp", "N", ""},
                {"shard-size", "SIZE", "", "5G"},
                {"timeout", "DURATION", "", "60s"},
                {"method", "NAME", "", "sharded"},
                {"gpus", "LIST", ""},
                {"ceiling", "", ""},
                {"delta", "FILE", "", {}, false}},
    .paths = 0,
};
const std::set<std::string> known = {"tp", "shard-size", "timeout", "method", "gpus", "ceiling", "repeat", "delta"};

Options parse(std::vector<std::string> arguments, std::vector<std::string> environment = {}) {
  return Options::parse(command, arguments, environment, known);
}

/// A configuration file that lives as long as the test.
class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text) : path_(::testing::TempDir() + "weightcast_options_test.ini") {
    write_text_file(path_, text);
  }
  ~ConfigFile() { std::remove(path_.c_str()); }
  std::string option() const { return "--config=" + path_; }

 private:
  std::string path_;
};

TEST(Options, AnotherCommandsVariableIsNotTaken) {
  EXPECT_FALSE(parse({}, {"WEIGHTCAST_DELTA=auto"}).has("delta"));
  EXPECT_EQ(parse({"--delta", "base.h5"}, {"WEIGHTCAST_DELTA=auto"}).required("delta"), "base.h5");
}

TEST(Options, CommandLineBeatsEnvironmentBeatsFileBeatsDefault) {
  const ConfigFile file("tp = 1\nshard-size = 1M\nmethod = broadcast\n");
  const auto options = parse({"--tp", "3", file.option()}, {"WEIGHTCAST_TP=2", "WEIGHTCAST_SHARD_SIZE=2M"});
  EXPECT_EQ(options.number("tp"), 3u);
  EXPECT_EQ(options.size("shard-size"), 2u << 20);
  EXPECT_EQ(options.choice<Method>("method"), Method::broadcast);
  EXPECT_EQ(options.duration_s("timeout"), 60);
}

TEST(Options, DescribeNamesEveryOrigin) {
  const ConfigFile file("method = broadcast\n");
  const std::string text = parse({"--tp=3", file.option()}, {"WEIGHTCAST_TIMEOUT=30s"}).describe();
  EXPECT_THAT(text, HasSubstr("tp = 3                                  # command line\n"));
  EXPECT_THAT(text, HasSubstr("timeout = 30s                           # WEIGHTCAST_TIMEOUT\n"));
  EXPECT_THAT(text, HasSubstr("shard-size = 5G                         # default\n"));
  EXPECT_THAT(text, HasSubstr("ceiling = false                         # default\n"));
  EXPECT_THAT(text, HasSubstr("# gpus                                  # not set\n"));
  EXPECT_THAT(text, HasSubstr("weightcast_options_test.ini\n"));
}

TEST(Options, DescriptionIsAConfigFile) {
  const ConfigFile file(parse({"--tp=3", "--ceiling"}).describe());
  const auto again = parse({file.option()});
  EXPECT_EQ(again.number("tp"), 3u);
  EXPECT_TRUE(again.flag("ceiling"));
  EXPECT_FALSE(again.has("gpus"));
}

TEST(Options, TheConfigFileMayBeNamedByTheEnvironment) {
  const ConfigFile file("tp = 4\n");
  EXPECT_EQ(parse({}, {"WEIGHTCAST_CONFIG=" + file.option().substr(9)}).number("tp"), 4u);
}

TEST(Options, AbbreviationsAreRefused) {
  EXPECT_EQ(error_of([] { parse({"--time", "3s"}); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"--ceil"}); }).code(), ExitCode::usage);
}

TEST(Options, UnknownNamesAreRefusedEverywhere) {
  EXPECT_EQ(error_of([] { parse({"--nonsense", "3"}); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"-t", "3"}).paths(); }).code(), ExitCode::usage);
  const Error variable = error_of([] { parse({}, {"WEIGHTCAST_TIMEUOT=3s"}); });
  EXPECT_EQ(variable.code(), ExitCode::config);
  EXPECT_THAT(variable.what(), HasSubstr("WEIGHTCAST_TIMEUOT"));
  const ConfigFile file("tp = 1\ntimeuot = 3s\n");
  const Error key = error_of([&] { parse({file.option()}); });
  EXPECT_EQ(key.code(), ExitCode::config);
  EXPECT_THAT(key.what(), HasSubstr("'timeuot'"));
  EXPECT_THAT(key.what(), HasSubstr("weightcast_options_test.ini"));
}

TEST(Options, NearMissesAreNamed) {
  EXPECT_THAT(error_of([] { parse({"--timout=3s"}); }).hint(), HasSubstr("did you mean --timeout?"));
  EXPECT_THAT(error_of([] { parse({"--hlep"}); }).hint(), HasSubstr("did you mean --help?"));
  EXPECT_THAT(error_of([] { parse({"--pigeon"}); }).hint(), Not(HasSubstr("did you mean")));
  EXPECT_THAT(error_of([] { parse({}, {"WEIGHTCAST_TIMOUT=3s"}); }).hint(),
              HasSubstr("did you mean WEIGHTCAST_TIMEOUT?"));
  EXPECT_THAT(error_of([] { parse({}, {"WEIGHTCAST_CONFG=x"}); }).hint(), HasSubstr("did you mean WEIGHTCAST_CONFIG?"));
  const ConfigFile file("timout = 3s\n");
  EXPECT_THAT(error_of([&] { parse({file.option()}); }).hint(), HasSubstr("did you mean timeout?"));
}

TEST(Options, OtherVariablesAreNotOurs) {
  const auto options = parse({}, {"WEIGHTCAST_SERVICE_HOST=10.0.0.1", "WEIGHTCAST_SERVICE_PORT=80", "WEIGHTCAST_TP=2",
                                  "WEIGHTCAST_PORT=tcp://10.0.0.1:80", "WEIGHTCAST_PORT_80_TCP=tcp://10.0.0.1:80",
                                  "WEIGHTCAST_LIBRARY=x", "WEIGHTCAST_", "WEIGHTCAST_=", "WEIGHTCAST_HOME"});
  EXPECT_EQ(options.number("tp"), 2u);
}

TEST(Options, HelpHasAShortForm) {
  EXPECT_TRUE(parse({"-h"}).help());
  EXPECT_TRUE(parse({"--tp", "3", "-h"}).help());
  EXPECT_FALSE(parse({"--tp", "3"}).help());
}

TEST(Options, OptionsOfOtherCommandsAreKnownToEnvironmentAndFileOnly) {
  const ConfigFile file("repeat = 5\ntp = 2\n");
  EXPECT_EQ(parse({file.option()}, {"WEIGHTCAST_REPEAT=5"}).number("tp"), 2u);
  EXPECT_EQ(error_of([] { parse({"--repeat", "5"}); }).code(), ExitCode::usage);
}

TEST(Options, TwiceIsAnError) {
  EXPECT_EQ(error_of([] { parse({"--tp=1", "--tp=2"}); }).code(), ExitCode::usage);
  const ConfigFile file("tp = 1\ntp = 2\n");
  EXPECT_EQ(error_of([&] { parse({file.option()}); }).code(), ExitCode::config);
}

TEST(Options, BadFiles) {
  EXPECT_EQ(error_of([] { parse({"--config", "/nonexistent.ini"}); }).code(), ExitCode::no_input);
  const ConfigFile file("this is no assignment\n");
  EXPECT_EQ(error_of([&] { parse({file.option()}); }).code(), ExitCode::config);
}

TEST(Options, BadValuesNameOptionOriginAndChoices) {
  const Error choice = error_of([] { parse({"--method", "mail"}).choice<Method>("method"); });
  EXPECT_EQ(choice.code(), ExitCode::usage);
  EXPECT_THAT(choice.what(), HasSubstr("--method (command line): 'mail'"));
  EXPECT_THAT(choice.hint(), HasSubstr("sharded, broadcast"));
  const Error number = error_of([] { parse({}, {"WEIGHTCAST_TP=2x"}).number("tp"); });
  EXPECT_EQ(number.code(), ExitCode::config);
  EXPECT_THAT(number.what(), HasSubstr("--tp (WEIGHTCAST_TP): '2x'"));
  EXPECT_EQ(error_of([] { parse({"--tp=0"}).number("tp", 1); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"--tp=18446744073709551616"}).number("tp"); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"--timeout=never"}).duration_s("timeout"); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"--shard-size=1X"}).size("shard-size"); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({}, {"WEIGHTCAST_CEILING=perhaps"}).flag("ceiling"); }).code(), ExitCode::config);
}

TEST(Options, ListsAndFlags) {
  const auto options = parse({"--gpus=0,1,1", "--ceiling"});
  EXPECT_THAT(options.numbers("gpus", 1023), ElementsAre(0, 1, 1));
  EXPECT_TRUE(options.flag("ceiling"));
  EXPECT_FALSE(parse({}, {"WEIGHTCAST_CEILING=false"}).flag("ceiling"));
  EXPECT_EQ(error_of([] { parse({"--gpus=0,,1"}).numbers("gpus", 9); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"--gpus=0,10"}).numbers("gpus", 9); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([] { parse({"surplus"}).paths(); }).code(), ExitCode::usage);
}

TEST(JobOptions, OnlyThoseThatTheCommandHas) {
  const CommandSpec few = {
      .name = "few",
      .arguments = "",
      .summary = "",
      .options = {
          {"tp", "N", ""}, {"dp", "N", "", "1"}, {"device", "KIND", "", "auto"}, {"timeout", "TIME", "", "60s"}}};
  const auto read = [&](std::vector<std::string> arguments) {
    return parse_job_options(Options::parse(few, arguments, {}, {}));
  };
  const auto options = read({"--tp=2", "--device=host"});
  EXPECT_EQ(options.tp, 2u);
  EXPECT_EQ(options.device, DeviceChoice::host);
  EXPECT_EQ(options.readers, 0u);
  EXPECT_TRUE(options.gpus.empty());
  EXPECT_TRUE(options.json.empty());
  EXPECT_EQ(error_of([&] { read({"--gpus=0"}); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([&] { read({"--tp=1000001"}); }).code(), ExitCode::usage);
}

UpdateOptions update(std::vector<std::string> arguments) {
  return parse_update_options(Options::parse(update_command(), arguments, {}, known_option_names()));
}

TEST(UpdateOptions, Defaults) {
  const auto options = update({"--initial=a", "--target=b"});
  EXPECT_EQ(options.initial, "a");
  EXPECT_EQ(options.target, "b");
  EXPECT_FALSE(options.model);
  EXPECT_FALSE(options.tp);
  EXPECT_EQ(options.dp, 1u);
  EXPECT_EQ(options.verify, VerifyChoice::all);
  EXPECT_EQ(options.truncate, 10u);
  EXPECT_EQ(options.repeat, 1u);
  EXPECT_EQ(options.scrub, 0u);
  EXPECT_EQ(options.timeout_s, 60);
  EXPECT_TRUE(options.gpus.empty());
  EXPECT_FALSE(options.preflight);
  EXPECT_EQ(options.delta, DeltaChoice::off);
  EXPECT_EQ(limit_for(options.delta, options.delta_limit), 0);
}

TEST(UpdateOptions, Deltas) {
  const auto options = update({"--initial=a", "--target=b", "--delta=auto"});
  EXPECT_EQ(limit_for(options.delta, options.delta_limit), 0.4);
  EXPECT_EQ(update({"--initial=a", "--target=b", "--delta=auto", "--delta-limit=5%"}).delta_limit, 0.05);
  EXPECT_EQ(update({"--initial=a", "--target=b", "--delta-limit=1"}).delta_limit, 1);
  for (const auto* bad : {"0", "1.01", "101%", "-1", "", "%", "0.4x", "nan", "4 %", "1e400"}) {
    const auto error = error_of([&] {
      update({"--initial=a", "--target=b", "--delta=auto", fmt::format("--delta-limit={}", bad)});
    });
    EXPECT_EQ(error.code(), ExitCode::usage) << bad;
    EXPECT_THAT(error.what(), HasSubstr("--delta-limit")) << bad;
  }
  EXPECT_THAT(error_of([&] {
                update({"--initial=a", "--target=b", "--delta-limit=2"});
              }).hint(),
              HasSubstr("at most 1, written like 0.4 or 2%"));
  const auto choice = error_of([&] { update({"--initial=a", "--target=b", "--delta=versions"}); });
  EXPECT_EQ(choice.code(), ExitCode::usage);
  EXPECT_THAT(choice.hint(), AllOf(HasSubstr("off, auto"), Not(HasSubstr("versions"))));
}

TEST(UpdateOptions, Everything) {
  const auto options = update({
      "--initial=synth:1",
      "--target=synth:2",
      "--model=tiny",
      "--tp=2",
      "--dp=3",
      "--device=host",
      "--gpus=0,1",
      "--transport=mpi",
      "--method=broadcast",
      "--granularity=parameter",
      "--commit=in-place",
      "--verify=sample",
      "--truncate=3",
      "--repeat=4",
      "--scrub=2",
      "--snapshot=s.h5",
      "--timeout=500ms",
      "--json=r.json",
      "--trace=t.json",
      "--preflight",
  });
  EXPECT_EQ(options.model, "tiny");
  EXPECT_EQ(options.tp, 2u);
  EXPECT_EQ(options.dp, 3u);
  EXPECT_EQ(options.device, DeviceChoice::host);
  EXPECT_EQ(options.transport, TransportChoice::mpi);
  EXPECT_EQ(options.method, Method::broadcast);
  EXPECT_EQ(options.granularity, Granularity::parameter);
  EXPECT_EQ(options.commit, CommitMode::in_place);
  EXPECT_EQ(options.verify, VerifyChoice::sample);
  EXPECT_EQ(options.timeout_s, 0.5);
  EXPECT_EQ(options.scrub, 2u);
  EXPECT_EQ(options.snapshot, "s.h5");
  EXPECT_EQ(options.trace, "t.json");
  EXPECT_TRUE(options.preflight);
}

TEST(UpdateOptions, WhatIsMissing) {
  EXPECT_THAT(error_of([] { update({"--initial=a"}); }).what(), HasSubstr("--target"));
  EXPECT_THAT(error_of([] { update({"--initial=synth", "--target=synth:2"}); }).hint(), HasSubstr("--model"));
  EXPECT_EQ(error_of([] { update({"--initial=a", "--target=b", "--tp=0"}); }).code(), ExitCode::usage);
  for (const auto* const scrub : {"--scrub=-1", "--scrub=often", "--scrub="})
    EXPECT_EQ(error_of([&] { update({"--initial=a", "--target=b", scrub}); }).code(), ExitCode::usage) << scrub;
}

TEST(BenchOptions, Lists) {
  const std::vector<std::string> arguments = {"--model=tiny,llama-3.2-1b", "--transport=mpi,direct",
                                              "--method=sharded,broadcast", "--verify=none,all", "--group-warmup=off"};
  const auto options = parse_bench_options(Options::parse(bench_command(), arguments, {}, known_option_names()));
  EXPECT_THAT(options.models, ElementsAre("tiny", "llama-3.2-1b"));
  EXPECT_THAT(options.transports, ElementsAre(TransportChoice::mpi, TransportChoice::direct));
  EXPECT_THAT(options.methods, ElementsAre(Method::sharded, Method::broadcast));
  EXPECT_THAT(options.granularities, ElementsAre(Granularity::model));
  EXPECT_EQ(options.verifies, (std::vector{VerifyChoice::none, VerifyChoice::all}));
  EXPECT_EQ(options.repeat, 20u);
  EXPECT_EQ(options.warmup, 2u);
  EXPECT_FALSE(options.group_warmup);
}

TEST(BenchOptions, Deltas) {
  const auto bench = [](std::vector<std::string> arguments) {
    arguments.emplace_back("--model=tiny");
    return parse_bench_options(Options::parse(bench_command(), arguments, {}, known_option_names()));
  };
  EXPECT_THAT(bench({}).deltas, ElementsAre(BenchDelta::off));
  EXPECT_FALSE(bench({}).changed);
  const auto options = bench({"--delta=off,auto,versions", "--changed=0.1%", "--delta-limit=0.25"});
  EXPECT_THAT(options.deltas, ElementsAre(BenchDelta::off, BenchDelta::automatic, BenchDelta::versions));
  EXPECT_DOUBLE_EQ(options.changed.value(), 0.001);
  EXPECT_EQ(options.delta_limit, 0.25);
  EXPECT_DOUBLE_EQ(bench({"--changed=0.02"}).changed.value(), bench({"--changed=2%"}).changed.value());
  EXPECT_EQ(error_of([&] { bench({"--changed=2"}); }).code(), ExitCode::usage);
  EXPECT_EQ(error_of([&] { bench({"--delta=always"}); }).code(), ExitCode::usage);
}

TEST(BenchOptions, NoSample) {
  const std::vector<std::string> arguments = {"--model=tiny", "--verify=sample"};
  const auto options = Options::parse(bench_command(), arguments, {}, known_option_names());
  EXPECT_EQ(error_of([&] { parse_bench_options(options); }).code(), ExitCode::usage);
}

TEST(Commands, HelpTextsNameEveryOption) {
  for (const Command& each : commands()) {
    const std::string text = usage_text(each.spec);
    for (const OptionSpec& option : each.spec.options) EXPECT_THAT(text, HasSubstr("--" + option.name));
    EXPECT_THAT(overview_text(), HasSubstr("  " + each.spec.name));
  }
}

}  // namespace
}  // namespace weightcast
