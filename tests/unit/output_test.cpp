// Where output goes: names that nobody else has, what is not a file, several writers of one name, whole folders.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/output_folder.hpp"
#include "weightcast/core/temporary.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using harness::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Names = std::set<std::string>;

std::span<const std::byte> bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

class OutputTest : public harness::FolderTest {
 protected:
  std::string text(const std::string& name) const { return read_text_file(path(name), 1000); }
  Names names(const std::string& folder = {}) const {
    Names all;
    for (const auto& entry : fs::directory_iterator(path(folder))) all.insert(entry.path().filename());
    return all;
  }

  /// A process that has an unfinished file, and a folder, under these names and waits.
  pid_t begin_apart() const {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe(ends.data()), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      OutputFile file(path("file"), 10);
      OutputFolder folder(path("made"), Existing::refuse);
      folder.add("part", 10);
      if (::write(ends[1], "x", 1) != 1) ::_exit(1);
      ::pause();
    }
    char byte = 0;
    EXPECT_EQ(::read(ends[0], &byte, 1), 1);
    ::close(ends[0]);
    ::close(ends[1]);
    return child;
  }
};

TEST_F(OutputTest, TwoUnfinishedFilesOfOneNameDiffer) {
  OutputFile one(path("file")), two(path("file"));
  EXPECT_NE(one.temporary_path(), two.temporary_path());
  EXPECT_EQ(names().size(), 2U);
  for (const auto& name : names()) EXPECT_TRUE(temporary_of("file", name)) << name;
}

TEST_F(OutputTest, OnlyNamesOfItsOwnKindAreTemporary) {
  EXPECT_TRUE(temporary_of("a", "a.tmp.01234567.0123456789abcdef"));
  EXPECT_TRUE(temporary_of("", ".tmp.01234567.0123456789abcdef"));
  for (const auto* name : {"a", "a.tmp.1234", "b.tmp.01234567.0123456789abcdef", "a.tmp.01234567.0123456789abcdeF",
                           "a.tmp.01234567-0123456789abcdef", "a.tmp.01234567.0123456789abcdef.old"}) {
    EXPECT_FALSE(temporary_of("a", name)) << name;
  }
}

TEST_F(OutputTest, WhatADeadWriterLeftIsRemovedAndALivingOneIsNot) {
  const pid_t child = begin_apart();
  write_text_file(path("file"), "text");
  OutputFolder(path("made"), Existing::refuse).add("x");
  EXPECT_EQ(names().size(), 3U) << "a living writer lost its files";
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(names().size(), 3U);
  write_text_file(path("file"), "text");
  EXPECT_EQ(names().size(), 2U);
  { const OutputFolder folder(path("made"), Existing::refuse); }
  EXPECT_EQ(names(), Names{"file"});
}

TEST_F(OutputTest, OfAnotherMachineOnlyWhatIsOldIsRemoved) {
  const std::string young = "file.tmp.00000000.0123456789abcdef", old = "file.tmp.00000000.fedcba9876543210";
  for (const auto& name : {young, old}) std::ofstream(path(name)) << "x";
  fs::last_write_time(path(old), fs::file_time_type::clock::now() - std::chrono::hours(25));
  write_text_file(path("file"), "text");
  EXPECT_EQ(names(), (Names{"file", young}));
}

TEST_F(OutputTest, LinksAreFollowed) {
  std::ofstream(path("file")) << "old";
  fs::create_symlink("file", path("link"));
  fs::create_symlink("link", path("to_link"));
  fs::create_symlink(path("new"), path("dangling"));
  fs::create_symlink("ring2", path("ring1"));
  fs::create_symlink("ring1", path("ring2"));
  write_text_file(path("to_link"), "1");
  write_text_file(path("dangling"), "2");
  EXPECT_EQ(text("file"), "1");
  EXPECT_EQ(text("new"), "2");
  EXPECT_TRUE(fs::is_symlink(path("link")) && fs::is_symlink(path("to_link")) && fs::is_symlink(path("dangling")));
  EXPECT_FALSE(fs::is_symlink(path("new")));
  const auto error = error_of([&] { write_text_file(path("ring1"), "3"); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("ring1")), HasSubstr("links")));
}

TEST_F(OutputTest, APipeIsWrittenToAndStays) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const std::string long_text(200'000, 'x');  // more than a pipe holds
  std::string got;
  std::thread reader(
      [&] { got = std::string(std::istreambuf_iterator<char>(std::ifstream(path("pipe")).rdbuf()), {}); });
  write_text_file(OutputName(path("pipe")), long_text);
  reader.join();
  EXPECT_EQ(got, long_text);
  EXPECT_TRUE(fs::is_fifo(path("pipe")));
  EXPECT_EQ(names(), Names{"pipe"});
}

TEST_F(OutputTest, APipeThatNobodyReadsIsAnErrorInTime) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const auto error = error_of([&] { write_text_file(OutputName(path("pipe")), "text", Deadline::after(0.05)); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), HasSubstr("nobody reads"));
  UniqueFd reader(::open(path("pipe").c_str(), O_RDONLY | O_NONBLOCK));
  std::thread leaves([&] {  // when it has read something
    for (char first = 0; ::read(reader.get(), &first, 1) <= 0;) std::this_thread::yield();
    reader.reset();
  });
  const std::string text(200'000, 'x');
  EXPECT_EQ(error_of([&] { write_text_file(OutputName(path("pipe")), text); }).code(), ExitCode::io_error);
  leaves.join();
}

TEST_F(OutputTest, APipeCannotHoldWhatIsNotWrittenFromItsBeginning) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const auto error = error_of([&] { OutputFile file(path("pipe")); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), HasSubstr("a pipe or a device"));
  EXPECT_EQ(names(), Names{"pipe"});
}

TEST_F(OutputTest, ADeviceIsWrittenToAndStays) {
  if (::mknod(path("null").c_str(), S_IFCHR | 0600, makedev(1, 3)) != 0) GTEST_SKIP() << "may not make devices";
  write_text_file(path("null"), "text");
  struct stat status {};
  ASSERT_EQ(::lstat(path("null").c_str(), &status), 0);
  EXPECT_TRUE(S_ISCHR(status.st_mode));
  if (::mknod(path("disk").c_str(), S_IFBLK | 0600, makedev(7, 200)) != 0) return;
  const auto error = error_of([&] { write_text_file(path("disk"), "text"); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), HasSubstr("block device"));
}

TEST_F(OutputTest, ASocketIsRefused) {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{AF_UNIX, {}};
  path("socket").copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  const auto error = error_of([&] { write_text_file(path("socket"), "text"); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), HasSubstr("socket"));
}

TEST_F(OutputTest, TheSecondOfTwoWritersIsToldAndLeavesTheFirst) {
  for (const bool there : {false, true}) {
    if (there) std::ofstream(path("file")) << "old";
    const OutputName one(path("file")), two(path("file"));
    write_text_file(one, "one");
    const auto error = error_of([&] { write_text_file(two, "two"); });
    EXPECT_EQ(error.code(), ExitCode::cant_create);
    EXPECT_THAT(error.what(), HasSubstr("somebody else"));
    EXPECT_EQ(text("file"), "one");
    EXPECT_EQ(names(), Names{"file"});
    write_text_file(path("file"), "after both");
    EXPECT_EQ(text("file"), "after both");
    fs::remove(path("file"));
  }
}

TEST_F(OutputTest, WhatIsThereIsRefusedWhereItMayNotBeReplaced) {
  EXPECT_NO_THROW(OutputName(path("file"), Existing::refuse));
  std::ofstream(path("file")) << "0123456789";
  const auto error = error_of([&] { OutputName(path("file"), Existing::refuse); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("file")), HasSubstr("10 B")));
  EXPECT_THAT(error.hint(), HasSubstr("--force"));
}

TEST_F(OutputTest, WhatASignalRemovedIsNotCommitted) {
  OutputFile large(path("large"), 10), small(path("small"));
  OutputFolder folder(path("made"), Existing::refuse);
  folder.add("part", 10);
  discard_large_output();
  EXPECT_EQ(names().size(), 1U) << "not only the small one is left";
  EXPECT_EQ(error_of([&] { large.commit(); }).code(), ExitCode::deadline);
  EXPECT_EQ(error_of([&] { folder.commit(); }).code(), ExitCode::deadline);
  small.commit();
  EXPECT_FALSE(fs::exists(path("large")) || fs::exists(path("made")));
}

class OutputFolderTest : public OutputTest {
 protected:
  void write(const std::string& name, const std::string& file, Existing existing) const {
    OutputFolder folder(path(name), existing);
    folder.write(folder.add(file, 3), 0, bytes("new"));
    folder.commit();
  }
};

TEST_F(OutputFolderTest, AppearsWhole) {
  {
    OutputFolder folder(path("deep/made/"), Existing::refuse);
    folder.add("file");
    EXPECT_FALSE(fs::exists(path("deep/made")));
  }
  EXPECT_EQ(names("deep"), Names());
  write("deep/made/", "file", Existing::refuse);
  EXPECT_EQ(names("deep"), Names{"made"});
  EXPECT_EQ(text("deep/made/file"), "new");
}

TEST_F(OutputFolderTest, AnEmptyFolderIsFilledAndStaysTheSame) {
  fs::create_directory(path("made"));
  fs::create_symlink("made", path("link"));
  struct stat before {
  }, after{};
  ::stat(path("made").c_str(), &before);
  write("link", "file", Existing::refuse);
  ::stat(path("made").c_str(), &after);
  EXPECT_EQ(before.st_ino, after.st_ino);
  EXPECT_EQ(names("made"), Names{"file"});
  EXPECT_TRUE(fs::is_symlink(path("link")));
}

TEST_F(OutputFolderTest, WhatIsInItIsNamedOrAllReplaced) {
  write("made", "old", Existing::refuse);
  fs::create_directory(path("made/sub"));
  const auto error = error_of([&] { write("made", "file", Existing::refuse); });
  EXPECT_EQ(error.code(), ExitCode::cant_create);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("old"), HasSubstr("sub"), HasSubstr("3 B")));
  EXPECT_EQ(names("made"), (Names{"old", "sub"}));
  write("made", "file", Existing::replace);
  EXPECT_EQ(names("made"), Names{"file"});
  EXPECT_EQ(names(), Names{"made"});
  std::ofstream(path("plain")) << "x";
  EXPECT_EQ(error_of([&] { write("plain", "file", Existing::replace); }).code(), ExitCode::cant_create);
}

TEST_F(OutputFolderTest, IsNotReplacedUnderTheFeetOfTheProgram) {
  write("made", "old", Existing::refuse);
  const auto before = fs::current_path();
  fs::current_path(path("made"));
  const auto error = error_of([&] { write("made", "file", Existing::replace); });
  fs::current_path(before);
  EXPECT_THAT(error.what(), HasSubstr("runs"));
  EXPECT_EQ(names("made"), Names{"old"});
}

TEST_F(OutputFolderTest, OneOfManyWritersWinsWhole) {
  constexpr int writers = 8;
  for (const auto& before : {"missing", "empty", "full"}) {
    if (before != std::string("missing")) fs::create_directory(path(before));
    if (before == std::string("full")) std::ofstream(path("full/old")) << "x";
    std::atomic<int> winner = -1, winners = 0, told = 0;
    std::vector<std::unique_ptr<OutputFolder>> folders;
    for (int i = 0; i < writers; ++i) {
      auto& folder = folders.emplace_back(std::make_unique<OutputFolder>(path(before), Existing::replace));
      for (const auto* file : {"a", "b"}) folder->write(folder->add(file), 0, bytes(std::to_string(i)));
    }
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < writers; ++i) {
        threads.emplace_back([&, i] {
          try {
            folders[static_cast<std::size_t>(i)]->commit();
            winner = i, ++winners;
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::cant_create) << error.what();
            ++told;
          }
        });
      }
    }
    folders.clear();
    EXPECT_EQ(std::pair(winners.load(), told.load()), std::pair(1, writers - 1)) << before;
    EXPECT_EQ(names(before), (Names{"a", "b"}));
    for (const std::string file : {"/a", "/b"}) EXPECT_EQ(text(before + file), std::to_string(winner));
  }
  EXPECT_EQ(names(), (Names{"empty", "full", "missing"}));
}

}  // namespace
}  // namespace weightcast
