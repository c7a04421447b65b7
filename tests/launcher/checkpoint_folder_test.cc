// Finding, keeping and removing checkpoints.
#include <gtest/gtest.h>

#include "tests/launcher/checkpoint_util.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

class CheckpointFolderTest : public CheckpointTest {
 protected:
  // Folders that look like checkpoints.
  void Make(const Strings& names) const {
    for (const std::string& name : names) {
      fs::create_directories(checkpoints_ / name);
      std::ofstream(checkpoints_ / name / kManifestName) << "x";
      std::ofstream(checkpoints_ / name / "shard") << "x";
    }
  }
};

TEST_F(CheckpointFolderTest, TheNewestIsTheHighestStep) {
  EXPECT_EQ(NewestCheckpoint(checkpoints_), std::nullopt);  // not even a folder
  Make({"step-00000009", "step-00000100", "step-00000020", "step-123456789", "step-7", "step-x",
        "step-0000000a", "step-00000200-copy", ".step-00000300.tmp-1", "other"});
  EXPECT_EQ(NewestCheckpoint(checkpoints_), checkpoints_ / "step-123456789");
  fs::remove_all(checkpoints_ / "step-123456789");
  EXPECT_EQ(NewestCheckpoint(checkpoints_), checkpoints_ / "step-00000100");
  // One without a manifest is none.
  fs::remove(checkpoints_ / "step-00000100" / kManifestName);
  EXPECT_EQ(NewestCheckpoint(checkpoints_), checkpoints_ / "step-00000020");
}

TEST_F(CheckpointFolderTest, FindsWhatAUserMeans) {
  Make({"step-00000001", "step-00000002"});
  EXPECT_EQ(FindCheckpoint(Path("run")), checkpoints_ / "step-00000002");
  EXPECT_EQ(FindCheckpoint(checkpoints_), checkpoints_ / "step-00000002");
  EXPECT_EQ(FindCheckpoint(checkpoints_ / "step-00000001"), checkpoints_ / "step-00000001");
  fs::create_directory(Path("empty"));
  Write("file", "x");
  for (const std::string& path : {Path("empty"), Path("none"), Path("file")}) {
    EXPECT_TRUE(BadInput([&] { FindCheckpoint(path); }).starts_with(path + ": "));
  }
}

TEST_F(CheckpointFolderTest, KeepsTheNewestAndWhatIsNotItsOwn) {
  const Strings others = {"notes", "step-00000009-copy"};
  Make({"step-00000001", "step-00000003", "step-00000002", "step-100000000"});
  Make(others);
  PruneCheckpoints(checkpoints_, 0);
  EXPECT_EQ(Names().size(), 6u);
  PruneCheckpoints(checkpoints_, 9);
  EXPECT_EQ(Names().size(), 6u);
  PruneCheckpoints(checkpoints_, 2);
  EXPECT_EQ(Names(), (Strings{"notes", "step-00000003", "step-00000009-copy", "step-100000000"}));
  PruneCheckpoints(checkpoints_, 1);
  EXPECT_EQ(Names(), (Strings{"notes", "step-00000009-copy", "step-100000000"}));
}

TEST_F(CheckpointFolderTest, RemovesWhatInterruptedSavesLeft) {
  Make({"step-00000001", ".step-00000002.tmp-77", ".step-00000001.old-5", ".other.tmp-1"});
  fs::remove(checkpoints_ / ".step-00000002.tmp-77" / kManifestName);
  PruneCheckpoints(checkpoints_, 0);
  EXPECT_EQ(Names(), (Strings{".other.tmp-1", "step-00000001"}));
}

TEST_F(CheckpointFolderTest, ACheckpointSetAsideCountsUntilItIsReplaced) {
  Make({"step-00000001", ".step-00000002.old-5"});
  PruneCheckpoints(checkpoints_, 0);
  EXPECT_EQ(NewestCheckpoint(checkpoints_), checkpoints_ / ".step-00000002.old-5");
  Make({"step-00000002"});
  EXPECT_EQ(NewestCheckpoint(checkpoints_), checkpoints_ / "step-00000002");
  PruneCheckpoints(checkpoints_, 0);
  EXPECT_EQ(Names(), (Strings{"step-00000001", "step-00000002"}));
}

TEST_F(CheckpointFolderTest, SavingWorksAroundAnInterruptedSave) {
  Save({1, 1, 2}, 1);
  Make({StrCat(".step-00000002.tmp-", getpid())});  // the very name it will use
  ExpectLoads(Save({1, 1, 2}, 2), {}, 2);
  EXPECT_EQ(Names(), (Strings{"step-00000001", "step-00000002"}));
}

}  // namespace
}  // namespace eyrie
