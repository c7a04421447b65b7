#include "launcher/node_memory.h"

#include <gtest/gtest.h>

#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class NodeMemoryTest : public TempFolderTest {
 protected:
  void Tell(const std::string& file, const std::string& content) {
    fs::create_directories(fs::path(Path(file)).parent_path());
    Write(file, content);
  }
  double Bytes() const { return NodeMemory(Path("")); }
};

TEST_F(NodeMemoryTest, WithoutControlGroupsItIsTheMachines) {
  const double machine = Bytes();
  EXPECT_GT(machine, 1e8);
  EXPECT_LT(machine, 1e15);
  EXPECT_LE(NodeMemory(), machine);
  // Neither groups without a limit nor lines of another kind change it.
  Tell("proc/self/cgroup", "nonsense\n3:cpu:/a\n0::/job/step\n");
  Tell("sys/fs/cgroup/job/memory.max", "max\n");
  Tell("sys/fs/cgroup/cpu/a/memory.limit_in_bytes", "1000\n");
  EXPECT_EQ(Bytes(), machine);
}

TEST_F(NodeMemoryTest, TheSmallestLimitOfAllGroupsAroundTheProcess) {
  Tell("proc/self/cgroup", "0::/job/step/task\n");
  Tell("sys/fs/cgroup/job/step/task/memory.max", "max\n");
  Tell("sys/fs/cgroup/job/step/memory.max", "5000000\n");
  EXPECT_EQ(Bytes(), 5e6);
  Tell("sys/fs/cgroup/job/memory.max", "4000000\n");
  EXPECT_EQ(Bytes(), 4e6);
  // A container sees its own limit at the root.
  Tell("sys/fs/cgroup/memory.max", "3000000\n");
  EXPECT_EQ(Bytes(), 3e6);
}

TEST_F(NodeMemoryTest, VersionOne) {
  Tell("proc/self/cgroup", "9:name=systemd:/\n4:memory:/slurm/job\n0::/\n");
  Tell("sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes", "7000000\n");
  Tell("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Bytes(), 7e6);
}

}  // namespace
}  // namespace eyrie
