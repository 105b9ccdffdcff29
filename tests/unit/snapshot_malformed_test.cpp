#include <gtest/gtest.h>
#include <sys/mount.h>

#include <filesystem>
#include <fstream>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/snapshot/snapshot.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;

class MalformedSnapshotTest : public harness::FolderTest {
 protected:
  MalformedSnapshotTest() {
    write_to(path("good.h5"));
    good_ = read_text_file(path("good.h5"), 1 << 24);
  }

  void write_to(const std::string& path) const {
    const auto content = [this](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
      std::copy_n(bytes_[index].begin() + static_cast<std::ptrdiff_t>(offset), destination.size(), destination.begin());
    };
    write_snapshot(path, model_, content, {3, {}, {{"written \"by\"", "a\ntest\xff"}}});
  }
  /// Opens a file with this content. ok: nothing was wrong with its structure. Anything but bad_data is a failure.
  ExitCode open(const std::string& content) const {
    const std::string path = folder_ / "bad.h5";
    fs::remove(path);  // a new file each time, and no fsync: hundreds are made
    std::ofstream(path, std::ios::binary) << content;
    try {
      const Snapshot snapshot = Snapshot::open(path);
      std::vector<std::byte> data;
      for (std::size_t i = 0; i < snapshot.tensors().size(); ++i) {
        data.resize(snapshot.tensors()[i].size_bytes().value());
        snapshot.read(i, 0, data);
      }
      return ExitCode::ok;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_data) << error.what();
      return error.code();
    }
  }

  const Model model_ = build_model(load_model_config("tiny"));
  const std::vector<std::vector<std::byte>> bytes_ = harness::model_bytes(model_, 1);
  std::string good_;
};

TEST_F(MalformedSnapshotTest, OpensTheUndamagedFile) {
  EXPECT_EQ(open(good_), ExitCode::ok);
  EXPECT_EQ(Snapshot::open(path("good.h5")).version(), 3U);
  EXPECT_TRUE(looks_like_hdf5(path("good.h5")));
}

TEST_F(MalformedSnapshotTest, RefusesOtherFiles) {
  EXPECT_EQ(open(""), ExitCode::bad_data);
  EXPECT_EQ(open("no snapshot\n"), ExitCode::bad_data);
  EXPECT_EQ(open(std::string(10'000, 'x')), ExitCode::bad_data);
  EXPECT_EQ(open("\x89HDF\r\n\x1a\n"), ExitCode::bad_data);
  EXPECT_EQ(open(good_.substr(0, 4096) + good_.substr(0, 4096)), ExitCode::bad_data);
  EXPECT_THROW(Snapshot::open(path("none.h5")), Error);
  EXPECT_THROW(Snapshot::open(folder_), Error);
}

TEST_F(MalformedSnapshotTest, RefusesAFileThatWasCutOff) {
  for (std::size_t size = 1; size < good_.size(); size += size < 6000 ? 397 : 9973) {
    EXPECT_EQ(open(good_.substr(0, size)), ExitCode::bad_data) << "after " << size << " bytes";
  }
  EXPECT_EQ(open(good_.substr(0, good_.size() - 1)), ExitCode::bad_data);
}

TEST_F(MalformedSnapshotTest, RefusesADamagedUserBlock) {
  for (const char* block :
       {"", "{}", R"({"schema": "weightcast.snapshot/2", "version": 1})", R"({"schema": "weightcast.snapshot/1"})",
        R"({"schema": "weightcast.snapshot/1", "version": -1})", R"([{"version": 1}])"}) {
    std::string text = block;
    text.resize(4096, ' ');
    EXPECT_EQ(open(text + good_.substr(4096)), ExitCode::bad_data) << block;
  }
}

/// Wherever a byte of the structure changes, the file is refused or reads as before; the data is the digests' business.
TEST_F(MalformedSnapshotTest, NeverCrashesOnFlippedBytes) {
  std::size_t refused = 0;
  for (std::size_t position = 4096; position < good_.size(); position += position < 36'000 ? 211 : 9973) {
    std::string bad = good_;
    bad[position] = static_cast<char>(bad[position] ^ 0x41);
    if (open(bad) == ExitCode::bad_data) ++refused;
  }
  EXPECT_GT(refused, 30U);
}

TEST_F(MalformedSnapshotTest, OverwrittenStretchesAreRefusedToo) {
  for (std::size_t position = 4096; position < 36'000; position += 2039) {
    for (const char filler : {'\0', '\x7f', '\xff'}) {
      std::string bad = good_;
      bad.replace(position, 64, 64, filler);
      open(bad);
    }
  }
}

TEST_F(MalformedSnapshotTest, AFullDiskIsAnErrorAndLeavesNothing) {
  const std::string disk = path("disk");
  fs::create_directory(disk);
  if (::mount("none", disk.c_str(), "tmpfs", 0, "size=128k") != 0) GTEST_SKIP() << "needs the right to mount";
  EXPECT_EQ(harness::error_of([&] { write_to(disk + "/a.h5"); }).code(), ExitCode::io_error);
  EXPECT_TRUE(fs::is_empty(disk));
  ::umount(disk.c_str());
}

}  // namespace
}  // namespace weightcast
