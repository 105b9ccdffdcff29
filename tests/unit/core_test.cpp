// The room core: sizes and durations as users write them, errors, handles, threads and files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <latch>
#include <limits>
#include <memory>
#include <new>
#include <set>
#include <thread>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/deadline.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/core/unique_handle.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using harness::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();

// --- bytes.hpp -------------------------------------------------------------------------------------------------------

TEST(ParseSize, ReadsUnitsOf1024) {
  EXPECT_EQ(parse_size("0"), 0u);
  EXPECT_EQ(parse_size("4096"), 4096u);
  EXPECT_EQ(parse_size("256K"), 256u << 10);
  EXPECT_EQ(parse_size("256M"), 256u << 20);
  EXPECT_EQ(parse_size("5G"), std::uint64_t{5} << 30);
  EXPECT_EQ(parse_size("2T"), std::uint64_t{2} << 40);
  EXPECT_EQ(parse_size("18446744073709551615"), largest);
  EXPECT_EQ(parse_size("16777215T"), std::uint64_t{16777215} << 40);
}

TEST(ParseSize, RefusesEverythingElse) {
  for (const char* text : {"", "K", "-1", "+1", " 1", "1 ", "1 K", "1k", "1KB", "1KiB", "1.5G", "0x10", "1e3",
                           "18446744073709551616", "16777216T", "18446744073709551615K", "five"}) {
    const auto error = error_of([&] { parse_size(text); });
    EXPECT_EQ(error.code(), ExitCode::usage) << text;
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("'{}'", text)));
    EXPECT_THAT(error.hint(), HasSubstr("256M"));
  }
}

TEST(FormatSize, HasThreeSignificantDigitsAtEveryBorder) {
  const std::pair<std::uint64_t, const char*> table[] = {{0, "0 B"},
                                                         {999, "999 B"},
                                                         {1000, "1.00 kB"},
                                                         {9994, "9.99 kB"},
                                                         {9996, "10.0 kB"},
                                                         {99'940, "99.9 kB"},
                                                         {99'960, "100 kB"},
                                                         {999'499, "999 kB"},
                                                         {999'500, "1.00 MB"},
                                                         {2'471'628'800, "2.47 GB"},
                                                         {16'060'522'496, "16.1 GB"},
                                                         {999'499'999'999, "999 GB"},
                                                         {1'000'000'000'000, "1.00 TB"},
                                                         {largest, "18446744 TB"}};
  for (const auto& [bytes, text] : table) EXPECT_EQ(format_size(bytes), text) << bytes;
}

TEST(Printable, ShowsControlBytesAndCuts) {
  EXPECT_EQ(printable("plain text"), "plain text");
  EXPECT_EQ(printable(std::string_view("a\x1b[31m\n\t\0\x7f z", 12)), "a\\x1b[31m\\x0a\\x09\\x00\\x7f z");
  EXPECT_EQ(printable("größe"), "größe");
  EXPECT_EQ(printable("abc", 3), "abc");
  EXPECT_EQ(printable("abcd", 3), "abc...");
  EXPECT_EQ(printable(std::string(201, 'x')), std::string(200, 'x') + "...");
  EXPECT_EQ(printable(""), "");
}

TEST(Checked, ArithmeticStopsAtTheLastNumberThatFits) {
  EXPECT_EQ(checked_multiply(0, largest), 0u);
  EXPECT_EQ(checked_multiply(1, largest), largest);
  EXPECT_EQ(checked_multiply(2, largest), std::nullopt);
  EXPECT_EQ(checked_multiply(1ULL << 32, (1ULL << 32) - 1), ((1ULL << 32) - 1) << 32);
  EXPECT_EQ(checked_multiply(1ULL << 32, 1ULL << 32), std::nullopt);
  EXPECT_EQ(checked_add(largest, 0), largest);
  EXPECT_EQ(checked_add(largest - 1, 1), largest);
  EXPECT_EQ(checked_add(largest, 1), std::nullopt);
  EXPECT_EQ(checked_add(largest, largest), std::nullopt);
  EXPECT_EQ(round_up(0, 256), 0u);
  EXPECT_EQ(round_up(1, 256), 256u);
  EXPECT_EQ(round_up(256, 256), 256u);
  EXPECT_EQ(round_up(257, 256), 512u);
}

// --- deadline.hpp ----------------------------------------------------------------------------------------------------

TEST(ParseDuration, ReadsUnitsFromMillisecondsToHours) {
  EXPECT_DOUBLE_EQ(parse_duration("60s"), 60);
  EXPECT_DOUBLE_EQ(parse_duration("500ms"), 0.5);
  EXPECT_DOUBLE_EQ(parse_duration("2m"), 120);
  EXPECT_DOUBLE_EQ(parse_duration("1.5"), 1.5);
  EXPECT_DOUBLE_EQ(parse_duration("1440m"), 86400);
  EXPECT_DOUBLE_EQ(parse_duration("24h"), 86400);
}

TEST(ParseShare, ReadsFractionsAndPercents) {
  EXPECT_DOUBLE_EQ(parse_share("0.4"), 0.4);
  EXPECT_DOUBLE_EQ(parse_share("2%"), 0.02);
  EXPECT_DOUBLE_EQ(parse_share("0.1%"), 0.001);
  EXPECT_DOUBLE_EQ(parse_share("1"), 1);
  EXPECT_DOUBLE_EQ(parse_share("100%"), 1);
  for (const auto* text : {"", "%", "0", "0%", "1.5", "101%", "-0.1", "nan", "inf", "2 %", "2%%", "x"})
    EXPECT_EQ(error_of([&] { parse_share(text); }).code(), ExitCode::usage) << text;
}

TEST(ParseDuration, RefusesEverythingElse) {
  for (const char* text : {"", "s", "ms", "0", "0s", "-1s", "+1s", " 1s", "1 s", "1d", "25h", "1S", "nan", "inf",
                           "infinity", "1e400", "86401", "1441m", "1s2"}) {
    const auto error = error_of([&] { parse_duration(text); });
    EXPECT_EQ(error.code(), ExitCode::usage) << text;
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("'{}'", text)));
  }
}

TEST(Deadline, PassesAndCanBeMovedOn) {
  const auto past = Deadline::after(-1);
  EXPECT_TRUE(past.passed());
  EXPECT_EQ(past.remaining_s(), 0);
  const auto later = past.plus(3601);
  EXPECT_FALSE(later.passed());
  EXPECT_GT(later.remaining_s(), 3000);
  EXPECT_LE(later.remaining_s(), 3600);
}

// --- error.hpp -------------------------------------------------------------------------------------------------------

TEST(ErrorType, CarriesItsFields) {
  Error error(ExitCode::bad_data, "what", "hint");
  EXPECT_EQ(error.reach(), Error::Reach::local);
  EXPECT_EQ(error.origin().rank, -1);
  error.origin() = {"stage", 3, "host", "engine"};
  error.set_reach(Error::Reach::everybody);
  const Error copy = error_of([&] { throw error; });
  EXPECT_STREQ(copy.what(), "what");
  EXPECT_EQ(copy.hint(), "hint");
  EXPECT_EQ(copy.code(), ExitCode::bad_data);
  EXPECT_EQ(copy.origin().rank, 3);
  EXPECT_EQ(copy.reach(), Error::Reach::everybody);
}

TEST(ErrorType, EveryCodeIsDescribedAndWithinTheContract) {
  std::set<std::string_view> words;
  for (const auto code : {ExitCode::ok, ExitCode::usage, ExitCode::bad_data, ExitCode::no_input, ExitCode::unavailable,
                          ExitCode::internal, ExitCode::cant_create, ExitCode::io_error, ExitCode::busy,
                          ExitCode::mismatch, ExitCode::config, ExitCode::deadline}) {
    EXPECT_TRUE(words.insert(describe(code)).second) << describe(code);
    EXPECT_NE(static_cast<int>(code), 77);
    EXPECT_LT(static_cast<int>(code), 126);
  }
  EXPECT_EQ(words.count("unknown"), 0u);
  EXPECT_EQ(describe(static_cast<ExitCode>(1)), "unknown");
}

template <typename Thrown>
Error translated(const Thrown& thrown) {
  try {
    throw thrown;
  } catch (...) {
    return current_error();
  }
}

TEST(CurrentError, TranslatesWhatIsInFlight) {
  EXPECT_EQ(translated(Error(ExitCode::busy, "later", "hint")).code(), ExitCode::busy);
  EXPECT_EQ(translated(Error(ExitCode::busy, "later", "hint")).hint(), "hint");
  EXPECT_EQ(translated(std::bad_alloc()).code(), ExitCode::unavailable);
  EXPECT_EQ(translated(std::out_of_range("far")).code(), ExitCode::internal);
  EXPECT_STREQ(translated(std::out_of_range("far")).what(), "far");
  EXPECT_EQ(translated(42).code(), ExitCode::internal);
}

TEST(Expects, NamesPlaceAndCondition) {
  const int two = 2;
  WEIGHTCAST_EXPECTS(two == 2);
  const auto error = error_of([&] { WEIGHTCAST_EXPECTS(two == 3); });
  EXPECT_EQ(error.code(), ExitCode::internal);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("core_test.cpp:"), HasSubstr("two == 3")));
}

// --- unique_handle.hpp, function_ref.hpp -----------------------------------------------------------------------------

struct CountingTraits {
  using Type = int;
  static constexpr int null() noexcept { return -1; }
  static void close(int handle) noexcept { closed.push_back(handle); }
  static inline std::vector<int> closed;
};
using Handle = UniqueHandle<CountingTraits>;

TEST(UniqueHandle, ClosesEachHandleOnceAndNullNever) {
  CountingTraits::closed.clear();
  {
    const Handle none;
    EXPECT_FALSE(none);
    Handle a(1), b(2);
    EXPECT_TRUE(a);
    EXPECT_EQ(a.get(), 1);
    Handle c(std::move(a));
    EXPECT_EQ(c.get(), 1);
    EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): moved from means null
    c = std::move(b);
    EXPECT_EQ(CountingTraits::closed, std::vector<int>{1});
    auto& same = c;
    c = std::move(same);
    EXPECT_EQ(c.get(), 2);
    Handle released(3);
    EXPECT_EQ(released.release(), 3);
    Handle replaced(4);
    replaced.reset(5);
    EXPECT_EQ(CountingTraits::closed, (std::vector<int>{1, 4}));
  }
  EXPECT_EQ(CountingTraits::closed, (std::vector<int>{1, 4, 5, 2}));
}

TEST(FunctionRef, CallsWhatItSees) {
  EXPECT_FALSE(FunctionRef<void()>());
  int calls = 0;
  const auto count = [&](int by) { return calls += by; };
  const FunctionRef<int(int)> view = count;
  EXPECT_TRUE(view);
  EXPECT_EQ(view(2), 2);
  EXPECT_EQ(view(3), 5);
  const FunctionRef<int(int)> copy = view;
  EXPECT_EQ(copy(1), 6);

  auto keep = [stored = 0](int value) mutable { return stored += value; };
  const FunctionRef<int(int)> state = keep;
  state(1);
  EXPECT_EQ(keep(1), 2) << "the callable itself is called, not a copy";

  const auto take = [](std::unique_ptr<int> value) { return *value; };
  EXPECT_EQ(FunctionRef<int(std::unique_ptr<int>)>(take)(std::make_unique<int>(7)), 7);
  int target = 0;
  const auto pick = [&](int&) -> int& { return target; };
  const FunctionRef<int&(int&)> reference = pick;
  reference(target) = 9;
  EXPECT_EQ(target, 9);
}

// --- parallel.hpp ----------------------------------------------------------------------------------------------------

TEST(ParallelFor, RunsEachIndexOnce) {
  for (const std::size_t count : {0u, 1u, 7u, 1000u}) {
    for (const std::size_t threads : {0u, 1u, 2u, 8u}) {
      std::vector<std::atomic<int>> calls(count);
      parallel_for(count, threads, [&](std::size_t i) { ++calls.at(i); });
      for (const auto& n : calls) EXPECT_EQ(n, 1) << count << " tasks, " << threads << " threads";
    }
  }
}

TEST(ParallelFor, RunsTasksAtTheSameTime) {
  std::latch both(2);  // a test that hangs here has found that they are not
  std::atomic<int> passed = 0;
  parallel_for(2, 2, [&](std::size_t) {
    both.arrive_and_wait();
    ++passed;
  });
  EXPECT_EQ(passed, 2);
}

TEST(ParallelFor, TheCallerWorksToo) {
  const auto caller = std::this_thread::get_id();
  parallel_for(3, 1, [&](std::size_t) { EXPECT_EQ(std::this_thread::get_id(), caller); });
}

TEST(ParallelFor, EachThreadHasItsOwn) {
  for (const std::size_t threads : {0, 1, 3}) {
    std::atomic<std::size_t> made{0}, sum{0};
    parallel_for(
        100, threads, [&] { return made++; },
        [&](std::size_t own, std::size_t i) {
          EXPECT_LT(own, std::max<std::size_t>(threads, 1));
          sum += i;
        });
    EXPECT_EQ(made, std::max<std::size_t>(threads, 1));
    EXPECT_EQ(sum, 4950u);
    EXPECT_THROW(parallel_for(
                     100, threads, [] { return 0; },
                     [](int, std::size_t i) {
                       if (i == 7) fail(ExitCode::bad_data, "seven");
                     }),
                 Error);
  }
}

TEST(ParallelFor, RethrowsAndBeginsNoLaterTask) {
  std::vector<std::size_t> begun;
  const auto error = error_of([&] {
    parallel_for(100, 1, [&](std::size_t i) {
      begun.push_back(i);
      if (i == 3) fail(ExitCode::mismatch, "task {}", i);
    });
  });
  EXPECT_STREQ(error.what(), "task 3");
  EXPECT_EQ(begun, (std::vector<std::size_t>{0, 1, 2, 3}));
}

TEST(ParallelFor, ReturnsOnlyWhenAllThreadsAreDone) {
  std::latch all(4);
  std::atomic<int> running = 0;
  EXPECT_EQ(error_of([&] {
              parallel_for(1000, 4, [&](std::size_t i) {
                ++running;
                if (i < 4) all.arrive_and_wait();  // four threads are inside before the first of them throws
                --running;
                if (i < 4) throw Error(ExitCode::busy, "all four");
              });
            }).code(),
            ExitCode::busy);
  EXPECT_EQ(running, 0);
}

TEST(Workers, WorkBesideTheCallerAgainAndAgain) {
  Workers workers(3);
  for (int i = 0; i < 100; ++i) {
    std::latch all(4);  // a test that hangs here has found that not all four threads work
    workers.run([&] { all.arrive_and_wait(); });
  }
}

TEST(Workers, AreDoneWhenRunReturns) {
  Workers workers(2);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    std::atomic<std::uint64_t> next = 0, sum = 0;
    workers.run([&] {
      for (auto k = next++; k < 10; k = next++) sum += k;
    });
    ASSERT_EQ(sum, 45u);
  }
  Workers none(0);
  int calls = 0;
  none.run([&] { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST(AvailableCores, AreSome) {
  EXPECT_GE(available_cores(), 1u);
}

// --- file.hpp --------------------------------------------------------------------------------------------------------

class FileTest : public harness::FolderTest {
 protected:
  static std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
  static std::string part(const InputFile& file, std::uint64_t offset, std::size_t size) {
    std::string text(size, '?');
    file.read(offset, std::as_writable_bytes(std::span(text)));
    return text;
  }
};

/// No file may grow beyond `bytes` while it lives: a disk that becomes full.
class SmallDisk {
 public:
  explicit SmallDisk(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  SmallDisk(SmallDisk&&) = delete;
  ~SmallDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  sighandler_t handler_;
};

TEST_F(FileTest, ReadsParts) {
  const InputFile file(put("file", "0123456789"));
  EXPECT_EQ(file.size(), 10u);
  EXPECT_EQ(file.path(), path("file"));
  EXPECT_EQ(part(file, 0, 10), "0123456789");
  EXPECT_EQ(part(file, 3, 4), "3456");
  EXPECT_EQ(part(file, 10, 0), "");
}

TEST_F(FileTest, FollowsLinks) {
  put("file", "text");
  fs::create_symlink("file", path("link"));
  EXPECT_EQ(part(InputFile(path("link")), 0, 4), "text");
}

TEST_F(FileTest, AShortFileIsBadDataAndSaysWhereItEnds) {
  const InputFile file(put("file", "0123456789"));
  const auto beyond = error_of([&] { part(file, 8, 5); });
  EXPECT_EQ(beyond.code(), ExitCode::bad_data);
  EXPECT_THAT(beyond.what(), AllOf(HasSubstr(path("file")), HasSubstr("ends at byte 10"), HasSubstr("3 bytes")));
  EXPECT_EQ(error_of([&] { part(file, 1000, 1); }).code(), ExitCode::bad_data);
  fs::resize_file(path("file"), 4);  // while it is open
  const auto cut = error_of([&] { part(file, 0, 10); });
  EXPECT_EQ(cut.code(), ExitCode::bad_data);
  EXPECT_THAT(cut.what(), HasSubstr("ends at byte 4"));
}

TEST_F(FileTest, WhatIsNoFileIsMissingInput) {
  fs::create_directory(path("folder"));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  fs::create_symlink("nowhere", path("dangling"));
  for (const auto& wrong :
       {path("missing"), path("folder"), path("pipe"), path("dangling"), std::string("/dev/null"), std::string()}) {
    const auto error = error_of([&] { InputFile file(wrong); });
    EXPECT_EQ(error.code(), ExitCode::no_input) << wrong;
    EXPECT_THAT(error.what(), HasSubstr(wrong));
  }
}

TEST_F(FileTest, ManyThreadsReadOneFile) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("{:04}", i);
  const InputFile file(put("file", text));
  std::atomic<int> wrong = 0;
  parallel_for(1000, 8, [&](std::size_t i) {
    if (part(file, 4 * i, 4) != fmt::format("{:04}", i)) ++wrong;
  });
  EXPECT_EQ(wrong, 0);
}

TEST_F(FileTest, TextHasALimit) {
  put("file", "0123456789");
  EXPECT_EQ(read_text_file(path("file"), 10), "0123456789");
  const auto error = error_of([&] { read_text_file(path("file"), 9); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("file")), HasSubstr("10"), HasSubstr("9")));
  EXPECT_EQ(read_text_file(put("empty", ""), 0), "");
}

TEST_F(FileTest, OutputAppearsWithCommit) {
  put("file", "old");
  {
    OutputFile file(path("file"), 10);
    file.write(5, bytes("56789"));
    file.write(0, bytes("01234"));
    EXPECT_EQ(read_text_file(path("file"), 100), "old");
    EXPECT_TRUE(fs::exists(file.temporary_path()));
    file.commit();
    EXPECT_EQ(files(), std::set<std::string>{"file"});
  }
  EXPECT_EQ(read_text_file(path("file"), 100), "0123456789");
  EXPECT_EQ(files(), std::set<std::string>{"file"});
}

TEST_F(FileTest, OutputWithoutCommitLeavesNothing) {
  put("file", "old");
  EXPECT_EQ(error_of([&] {
              OutputFile file(path("file"), 1000);
              file.write(0, bytes("new"));
              OutputFile another(path("another"));
              fail(ExitCode::mismatch, "in between");
            }).code(),
            ExitCode::mismatch);
  EXPECT_EQ(files(), std::set<std::string>{"file"});
  EXPECT_EQ(read_text_file(path("file"), 100), "old");
}

TEST_F(FileTest, OutputThatCannotBeCreated) {
  put("file", "");
  for (const auto& wrong :
       {path("no/such/folder"), path("file/inside"), std::string("/dev/full/x"), path(std::string(300, 'x'))}) {
    const auto error = error_of([&] { OutputFile file(wrong); });
    EXPECT_EQ(error.code(), ExitCode::cant_create) << wrong;
    EXPECT_THAT(error.what(), HasSubstr(wrong));
    EXPECT_NE(error.hint(), "");
  }
  EXPECT_EQ(files(), std::set<std::string>{"file"});
}

TEST_F(FileTest, AFolderIsNotReplaced) {
  fs::create_directory(path("folder"));
  const auto error = error_of([&] { OutputFile file(path("folder")); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), HasSubstr("it is a folder"));
  EXPECT_EQ(files(), std::set<std::string>{"folder"});
}

TEST_F(FileTest, AFullDiskIsFoundBeforeTheFirstByte) {
  const SmallDisk limit(4096);
  const auto error = error_of([&] { OutputFile file(path("file"), 4097); });
  EXPECT_EQ(error.code(), ExitCode::io_error);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("4097 bytes"), HasSubstr(path("file"))));
  EXPECT_NE(error.hint(), "");
  EXPECT_EQ(files(), std::set<std::string>());
  OutputFile fits(path("file"), 4096);
}

TEST_F(FileTest, AFileSystemWithoutThatMuchSpace) {
  const fs::path folder = "/dev/shm";
  struct statvfs space {};
  if (::statvfs(folder.c_str(), &space) != 0 || space.f_blocks == 0) GTEST_SKIP() << folder << " has no size";
  const auto name = folder / fmt::format("weightcast.core.{}", ::getpid());
  const auto total = static_cast<std::uint64_t>(space.f_blocks) * space.f_frsize;
  EXPECT_EQ(error_of([&] { OutputFile file(name.string(), total + (std::uint64_t{1} << 30)); }).code(),
            ExitCode::io_error);
  for (const auto& entry : fs::directory_iterator(folder))
    EXPECT_FALSE(entry.path().string().starts_with(name.string())) << entry.path();
}

TEST_F(FileTest, ADiskThatBecomesFullIsAnErrorAndLeavesNothing) {
  const SmallDisk limit(4096);
  const std::string text(5000, 'x');
  const auto error = error_of([&] {
    OutputFile file(path("file"));
    file.write(0, bytes(text));
    file.commit();
  });
  EXPECT_EQ(error.code(), ExitCode::io_error);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("file")), HasSubstr("byte 4096")));
  EXPECT_EQ(error_of([&] { write_text_file(path("text"), text); }).code(), ExitCode::io_error);
  EXPECT_EQ(files(), std::set<std::string>());
}

TEST_F(FileTest, TextIsWrittenWhole) {
  write_text_file(path("file"), "first, longer");
  write_text_file(path("file"), "second");
  EXPECT_EQ(read_text_file(path("file"), 100), "second");
  EXPECT_EQ(files(), std::set<std::string>{"file"});
}

TEST(HostName, IsKnown) {
  EXPECT_NE(host_name(), "");
}

}  // namespace
}  // namespace weightcast
