// Limits of memory, in made-up trees of /proc and control groups.
#include "weightcast/device/memory_room.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "harness/folder_test.hpp"
#include "weightcast/core/bytes.hpp"

namespace weightcast {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

/// A machine of 64 GiB with 32 GiB left, and what each test adds to it.
class MemoryRoomTest : public harness::FolderTest {
 protected:
  MemoryRoomTest() {
    write("/proc/meminfo", "MemTotal:       67108864 kB\nMemFree:         1 kB\nMemAvailable:   33554432 kB\n");
  }

  void write(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void groups(const std::string& own, const std::string& mounts) {
    write("/proc/self/cgroup", own);
    write("/proc/self/mountinfo", "23 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + mounts);
  }
  void unified(const std::string& folder, const std::string& limit, std::uint64_t used, std::uint64_t cache = 0) {
    write(folder + "/memory.max", limit + "\n");
    write(folder + "/memory.current", std::to_string(used) + "\n");
    write(folder + "/memory.stat",
          fmt::format("anon {}\nfile 99\ninactive_file {}\nactive_file 0\nslab_reclaimable 0\n", used - cache, cache));
  }
  void version_1(const std::string& folder, std::uint64_t limit, std::uint64_t used, std::uint64_t hierarchical) {
    write(folder + "/memory.limit_in_bytes", std::to_string(limit) + "\n");
    write(folder + "/memory.usage_in_bytes", std::to_string(used) + "\n");
    write(folder + "/memory.stat", fmt::format("active_file 7\nhierarchical_memory_limit {}\ntotal_inactive_file 10\n"
                                               "total_active_file 20\n",
                                               hierarchical));
  }
  /// The group that sets the limit, without the root of this test.
  std::string group() const {
    const auto room = memory_room(root_);
    return room.group.empty() ? "" : room.group.substr(root_.size());
  }
  MemoryRoom room() const { return memory_room(root_); }

  const std::string root_ = folder_;
};

constexpr std::uint64_t unlimited_version_1 = 9223372036854771712u;
const std::string unified_mount = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
const std::string memory_mount = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

TEST_F(MemoryRoomTest, WithoutGroupsTheMachineIsTheLimit) {
  EXPECT_EQ(room().limit_bytes, 64 * gibibyte);
  EXPECT_EQ(room().free_bytes, 32 * gibibyte);
  EXPECT_EQ(room().spare_bytes(), 32 * gibibyte - 512 * mebibyte);
  EXPECT_EQ(group(), "");
  EXPECT_THAT(room().describe(), HasSubstr("the machine has 34.4 GB of 68.7 GB left"));
}

TEST_F(MemoryRoomTest, NothingThatCanBeReadIsNoLimit) {
  fs::remove_all(root_ + "/proc");
  EXPECT_EQ(room().free_bytes, UINT64_MAX);
}

TEST_F(MemoryRoomTest, AContainerOfVersion2SeesItsGroupAsTheRoot) {
  groups("0::/\n", unified_mount);
  unified("/sys/fs/cgroup", "600000000", 100'000'000, 30'000'000);
  EXPECT_EQ(group(), "/sys/fs/cgroup");
  EXPECT_EQ(room().limit_bytes, 600'000'000u);
  EXPECT_EQ(room().free_bytes, 530'000'000u);  // file cache is given back
  EXPECT_EQ(room().spare_bytes(), 492'500'000u);
  EXPECT_THAT(room().describe(), HasSubstr("/sys/fs/cgroup allows 600 MB, 70.0 MB are in use, and 37.5 MB are kept"));
}

TEST_F(MemoryRoomTest, NoLimitIsNoLimit) {
  groups("0::/job\n", unified_mount);
  unified("/sys/fs/cgroup/job", "max", 100'000'000);
  EXPECT_EQ(group(), "");
  groups("4:memory:/job\n", memory_mount);
  version_1("/sys/fs/cgroup/memory/job", unlimited_version_1, 100, unlimited_version_1);
  EXPECT_EQ(group(), "");
}

TEST_F(MemoryRoomTest, ALimitLooserThanTheMachineSaysNothing) {
  groups("0::/job\n", unified_mount);
  unified("/sys/fs/cgroup/job", std::to_string(60 * gibibyte), gibibyte);
  EXPECT_EQ(group(), "");
}

TEST_F(MemoryRoomTest, EveryLevelCounts) {
  groups("0::/slurm/job_7/step_0\n", unified_mount);
  unified("/sys/fs/cgroup/slurm/job_7/step_0", "max", 300'000'000);
  unified("/sys/fs/cgroup/slurm/job_7", "1000000000", 400'000'000);
  unified("/sys/fs/cgroup/slurm", "2000000000", 1'900'000'000);
  EXPECT_EQ(group(), "/sys/fs/cgroup/slurm");  // less is left there, though it allows more
  EXPECT_EQ(room().free_bytes, 100'000'000u);
  unified("/sys/fs/cgroup/slurm", "2000000000", 500'000'000);
  EXPECT_EQ(group(), "/sys/fs/cgroup/slurm/job_7");
}

TEST_F(MemoryRoomTest, ThrottlingIsALimit) {
  groups("0::/job\n", unified_mount);
  unified("/sys/fs/cgroup/job", "max", 100);
  write("/sys/fs/cgroup/job/memory.high", "500000000\n");
  EXPECT_EQ(room().limit_bytes, 500'000'000u);
}

TEST_F(MemoryRoomTest, MoreThanAllowedIsNothingLeft) {
  groups("0::/job\n", unified_mount);
  unified("/sys/fs/cgroup/job", "1000", 5000);
  EXPECT_EQ(room().free_bytes, 0u);
  EXPECT_EQ(room().spare_bytes(), 0u);
}

TEST_F(MemoryRoomTest, Version1) {
  groups("9:name=systemd:/x\n4:cpu,memory:/docker/1f\n", memory_mount);
  version_1("/sys/fs/cgroup/memory/docker/1f", 600'000'000, 100'000'030, unlimited_version_1);
  EXPECT_EQ(group(), "/sys/fs/cgroup/memory/docker/1f");
  EXPECT_EQ(room().free_bytes, 500'000'000u);
}

TEST_F(MemoryRoomTest, Version1TellsOfLimitsOutOfSight) {
  groups("4:memory:/\n", memory_mount);
  version_1("/sys/fs/cgroup/memory", unlimited_version_1, 100'000'030, 400'000'000);
  EXPECT_EQ(room().limit_bytes, 400'000'000u);
  EXPECT_EQ(room().free_bytes, 300'000'000u);
}

TEST_F(MemoryRoomTest, AContainerWithoutANamespaceSeesItsPartOnly) {
  groups("4:memory:/docker/1f/inner\n", "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  version_1("/sys/fs/cgroup/memory", 600'000'000, 30, unlimited_version_1);
  version_1("/sys/fs/cgroup/memory/inner", 300'000'000, 30, unlimited_version_1);
  EXPECT_EQ(group(), "/sys/fs/cgroup/memory/inner");
  groups("4:memory:/docker/1f\n", "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  EXPECT_EQ(group(), "/sys/fs/cgroup/memory");
}

TEST_F(MemoryRoomTest, BothVersionsBesideEachOther) {
  groups("4:memory:/a\n0::/a\n", memory_mount + "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  version_1("/sys/fs/cgroup/memory/a", 600'000'000, 30, unlimited_version_1);
  unified("/sys/fs/cgroup/unified/a", "500000000", 0);
  EXPECT_EQ(group(), "/sys/fs/cgroup/unified/a");
  fs::remove_all(root_ + "/sys/fs/cgroup/unified");
  EXPECT_EQ(group(), "/sys/fs/cgroup/memory/a");
}

TEST_F(MemoryRoomTest, AGroupAboveTheNamespaceCounts) {
  groups("0::/\n", "31 23 0:28 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
  unified("/sys/fs/cgroup", "600000000", 0);
  EXPECT_EQ(group(), "/sys/fs/cgroup");
}

TEST_F(MemoryRoomTest, OtherGroupsDoNot) {
  unified("/sys/fs/cgroup", "600000000", 0);
  unified("/sys/fs/cgroup/job_7", "600000000", 0);
  for (const auto* mounted : {"/docker/2e", "/docker/1", "/../2e", "/..x"}) {
    groups("0::/docker/1f\n", fmt::format("31 23 0:28 {} /sys/fs/cgroup ro - cgroup2 cgroup rw\n", mounted));
    EXPECT_EQ(group(), "") << mounted;
  }
  groups("0::/../elsewhere\n", unified_mount);
  EXPECT_EQ(group(), "");
  groups("4:memory:/\n", unified_mount);  // not in version 2
  EXPECT_EQ(group(), "");
  groups("0::/\n", "31 23 0:28 / /sys/fs/cgroup rw - tmpfs cgroup2 rw,memory\n");
  EXPECT_EQ(group(), "");
}

TEST_F(MemoryRoomTest, BlanksInPaths) {
  groups("0::/a b\n", R"(31 23 0:28 / /sys/fs/c\040group rw shared:1 - cgroup2 cgroup2 rw)");
  unified("/sys/fs/c group/a b", "600000000", 0);
  EXPECT_EQ(group(), "/sys/fs/c group/a b");
}

TEST_F(MemoryRoomTest, NonsenseIsNoLimit) {
  for (const auto* own : {"", "0", "0:", "0::", "::\n", "0::a\n", ":memory", "\n\n"}) {
    groups(own, "- - - -\n31 - x\n31 23 0:28 / /sys/fs/cgroup - cgroup2\n" + unified_mount + memory_mount);
    write("/sys/fs/cgroup/memory.max", "12 or so, 99999999999999999999\n");
    EXPECT_EQ(group(), "") << own;
  }
  groups("0::/\n", unified_mount);
  write("/sys/fs/cgroup/memory.max", "99999999999999999999\n");
  write("/sys/fs/cgroup/memory.current", "1\n");
  EXPECT_EQ(group(), "");
}

}  // namespace
}  // namespace weightcast
