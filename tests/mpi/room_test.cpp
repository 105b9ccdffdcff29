// Memory that the ranks of a host need together, against what made-up machines and control groups have left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "harness/error_of.hpp"
#include "harness/folder_test.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/job/placement.hpp"

namespace weightcast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::uint64_t spare_bytes = 15 * gibibyte + 512 * mebibyte;  // of 16 GiB, all free

class RoomTest : public harness::FolderTest {
 protected:
  RoomTest() {
    write("/proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 16777216 kB\n");
    write("/proc/zoneinfo", "Node 0, zone Normal\n");
  }

  void write(const std::string& name, const std::string& text) {
    const auto file = root_ + name;
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    std::ofstream(file) << text;
  }
  /// A control group of this rank's own.
  void enter_group(std::uint64_t limit_bytes) {
    write("/proc/self/cgroup", "0::/\n");
    write("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    write("/sys/fs/cgroup/memory.max", std::to_string(limit_bytes) + "\n");
    write("/sys/fs/cgroup/memory.current", "0\n");
    write("/sys/fs/cgroup/memory.stat", "\n");
  }
  void expect(std::uint64_t bytes) { expect_room(world_, MemoryKind::host, bytes, Deadline::after(30), root_); }
  Error refused(std::uint64_t bytes) {
    const auto error = harness::error_of([&] { expect(bytes); });
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_EQ(error.reach(), Error::Reach::everybody);
    return error;
  }

  const std::string root_ = folder_;
  const Communicator world_ = Communicator::duplicate(MPI_COMM_WORLD);
  const std::uint64_t ranks_ = static_cast<std::uint64_t>(world_.size());
};

TEST_F(RoomTest, RanksOfAHostNeedItTogether) {
  EXPECT_NO_THROW(expect(spare_bytes / ranks_));
  const auto error = refused(spare_bytes / ranks_ + 1);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(fmt::format("the weights of {} rank", ranks_)), HasSubstr("16.6 GB"),
                                  HasSubstr("the machine has 17.2 GB of 17.2 GB left")));
  EXPECT_THAT(error.hint(), HasSubstr("--commit in-place"));
}

TEST_F(RoomTest, OneRankThatNeedsItAllLeavesNothing) {
  EXPECT_NO_THROW(expect(world_.rank() == 0 ? spare_bytes : 0));
  refused(world_.rank() == 0 ? spare_bytes + 1 : 0);
}

TEST_F(RoomTest, AMachineThatGrowsIsNoLimitButAGroupInItIs) {
  std::filesystem::remove(root_ + "/proc/zoneinfo");
  EXPECT_NO_THROW(expect(spare_bytes + 1));
  enter_group(2 * gibibyte);
  refused(2 * gibibyte);
}

TEST_F(RoomTest, AGroupOfItsOwnIsNotShared) {
  enter_group(2 * gibibyte);
  const auto spare = 2 * gibibyte - 128 * mebibyte;
  EXPECT_NO_THROW(expect(spare));
  const auto error = refused(world_.rank() == 0 ? spare + 1 : spare);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("the weights of 1 rank here"), HasSubstr("control group")));
  EXPECT_THAT(error.hint(), HasSubstr("docker run --memory"));
}

}  // namespace
}  // namespace weightcast
