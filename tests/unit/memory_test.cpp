// The room device on the host: buffers, and how another process sees them.
#include "weightcast/device/memory.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "harness/error_of.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

using harness::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Buffer, IsZeroAndWritable) {
  for (const bool shared : {false, true}) {
    const auto buffer = Buffer::host(100'001, shared, "a test");
    const auto region = buffer.region();
    EXPECT_EQ(region.size_bytes, 100'001u);
    EXPECT_EQ(region.kind, MemoryKind::host);
    EXPECT_TRUE(std::ranges::all_of(region.bytes(), [](std::byte b) { return b == std::byte{0}; }));
    std::memset(region.data, 0x5a, region.size_bytes);
  }
}

TEST(Buffer, OfNothing) {
  for (const bool shared : {false, true}) EXPECT_EQ(Buffer::host(0, shared, "nothing").region().size_bytes, 0u);
}

TEST(Buffer, HasOneOwner) {
  auto a = Buffer::host(4096, true, "a test");
  auto* const data = a.region().data;
  Buffer b(std::move(a));
  EXPECT_EQ(b.region().data, data);
  EXPECT_EQ(a.region().data, nullptr);  // NOLINT(bugprone-use-after-move): moved from means empty
  auto c = Buffer::host(8192, true, "a test");
  c = std::move(b);
  EXPECT_EQ(c.region().data, data);
  data[4095] = std::byte{1};
}

TEST(Buffer, TooLargeNamesPurposeAndSize) {
  // Should so much ever be granted, this limit keeps a shared buffer from taking all memory of the machine.
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit limit{1 << 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  for (const bool shared : {false, true}) {
    const auto error = error_of([&] { Buffer::host(std::uint64_t{1} << 60, shared, "slot 1 of an engine rank"); });
    EXPECT_EQ(error.code(), ExitCode::unavailable);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("slot 1 of an engine rank"), HasSubstr("1152921504606846976 bytes")));
    EXPECT_NE(error.hint(), "");
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);
}

TEST(Mapping, SeesWhatIsWrittenBeforeAndAfter) {
  const auto buffer = Buffer::host(70'000, true, "a test");
  buffer.region().data[69'999] = std::byte{7};
  const Mapping mapping(buffer.share());
  ASSERT_EQ(mapping.bytes().size(), 70'000u);
  EXPECT_NE(mapping.bytes().data(), buffer.region().data);
  EXPECT_EQ(mapping.bytes()[69'999], std::byte{7});
  buffer.region().data[0] = std::byte{9};
  EXPECT_EQ(mapping.bytes()[0], std::byte{9});
}

TEST(Mapping, OfAnotherProcess) {
  const auto buffer = Buffer::host(12'345, true, "a test");
  for (std::size_t i = 0; i < 12'345; ++i) buffer.region().data[i] = static_cast<std::byte>(i * 31);
  const auto handle = buffer.share();
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 2;
    try {
      const Mapping mapping(handle);
      status = mapping.bytes().size() == 12'345 ? 0 : 3;
      for (std::size_t i = 0; i < mapping.bytes().size(); ++i) {
        if (mapping.bytes()[i] != static_cast<std::byte>(i * 31)) status = 1;
      }
    } catch (...) {
    }
    ::_exit(status);
  }
  ASSERT_GT(child, 0);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Mapping, RefusesWhatIsNotThatBuffer) {
  const auto handle = Buffer::host(4096, true, "gone at the end of this line").share();
  EXPECT_EQ(error_of([&] { Mapping mapping(handle); }).code(), ExitCode::unavailable);

  const auto buffer = Buffer::host(4096, true, "a test");
  auto wrong = buffer.share();
  wrong.size_bytes = 8192;
  EXPECT_EQ(error_of([&] { Mapping mapping(wrong); }).code(), ExitCode::unavailable);
  wrong = buffer.share();
  wrong.fd = 1'000'000;
  EXPECT_EQ(error_of([&] { Mapping mapping(wrong); }).code(), ExitCode::unavailable);
  wrong = buffer.share();
  wrong.pid = std::int64_t{1} << 40;
  EXPECT_EQ(error_of([&] { Mapping mapping(wrong); }).code(), ExitCode::unavailable);
}

TEST(Mapping, PrivateBuffersAreNotShared) {
  const auto buffer = Buffer::host(4096, false, "a test");
  EXPECT_EQ(error_of([&] { buffer.share(); }).code(), ExitCode::internal);
}

TEST(Mapping, HasOneOwner) {
  const auto buffer = Buffer::host(4096, true, "a test");
  Mapping a(buffer.share());
  const auto* const data = a.bytes().data();
  Mapping b(std::move(a));
  EXPECT_EQ(b.bytes().data(), data);
  EXPECT_TRUE(a.bytes().empty());  // NOLINT(bugprone-use-after-move): moved from means empty
  Mapping c;
  c = std::move(b);
  EXPECT_EQ(c.bytes().data(), data);
}

class CopyRows : public testing::TestWithParam<decltype(&copy_rows)> {};

TEST_P(CopyRows, MovesRowsAndNothingBetween) {
  constexpr std::uint64_t rows = 4;
  for (const std::uint64_t row_bytes : {1, 5, 64, 70, 1024, 1500, 4100}) {
    for (const std::uint64_t from : {row_bytes, row_bytes + 3}) {
      for (const std::uint64_t to : {row_bytes, row_bytes + 2, row_bytes + 16}) {
        for (const std::uint64_t shift : {0, 1}) {  // aligned and not
          std::vector<std::byte> source((rows - 1) * from + row_bytes + shift),
              destination((rows - 1) * to + row_bytes + shift, std::byte{0xff});
          for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i % 251);
          GetParam()(destination.data() + shift, to, source.data() + shift, from, row_bytes, rows);
          for (std::size_t i = 0; i + shift < destination.size(); ++i) {
            const auto row = i / to, column = i % to;
            ASSERT_EQ(destination[i + shift],
                      column < row_bytes ? source[row * from + column + shift] : std::byte{0xff})
                << i;
          }
        }
      }
    }
  }
  std::byte untouched{7};
  const std::byte other{1};
  GetParam()(&untouched, 1, &other, 1, 1, 0);
  EXPECT_EQ(untouched, std::byte{7});
}

INSTANTIATE_TEST_SUITE_P(All, CopyRows, testing::Values(&copy_rows, &stream_rows));

}  // namespace
}  // namespace weightcast
