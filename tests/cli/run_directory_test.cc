// A run's directory is one run's at a time.
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "tests/support/training_test.h"

namespace eyrie {
namespace {

class RunDirectoryTest : public TrainingTest {
 protected:
  // Starts a run without end, and waits for its first steps.
  pid_t StartRun(const std::string& log) const {
    const pid_t job = Start(EyrieCommand(0, Arguments({"train.steps=1000000"})), log);
    EXPECT_TRUE(WaitForSteps(run_, 3)) << ReadFile(log + ".err");
    return job;
  }
  const std::string log_ = (directory_ / "log").string();
  const std::vector<std::string> refusal_ = {"run.directory: another run is writing to " +
                                             run_.string()};
};

TEST_F(RunDirectoryTest, ASecondRunIsRefusedAndTheFirstGoesOn) {
  const pid_t job = StartRun(log_);
  ExpectBadInput(Train(2, {"train.seed=2", "run.timeout_seconds=2"}), refusal_);
  ExpectRefused(RunEyrie(0, {"train", "--config", config_, "--dry-run"}), refusal_);
  kill(job, SIGTERM);
  const ProcessResult result = Finish(job, log_);
  EXPECT_EQ(result.code, 143) << result.err;
  const auto metrics = ReadMetrics(run_);
  for (size_t i = 0; i < metrics.size(); ++i) EXPECT_EQ(metrics[i]["step"], i + 1);
  EXPECT_EQ(RunEyrie(0, {"checkpoint", "verify", run_.string()}).code, 0);
}

// As it is after a mpirun that was killed before its ranks.
TEST_F(RunDirectoryTest, ARunWaitsForOneThatIsDying) {
  const pid_t job = StartRun(log_);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::seconds(2));
    kill(job, SIGKILL);
    Finish(job, log_);
  });
  const ProcessResult next = Train(0, {"train.stop_after=2"});
  killer.join();
  EXPECT_EQ(next.code, 0) << next.err;
  EXPECT_GT(next.seconds, 1.5);
}

// Ranks on machines whose file systems differ, as here by where each stands: found before the first
// step, and not with the first checkpoint.
TEST_F(RunDirectoryTest, RanksMustSeeOneDirectory) {
  std::vector<std::vector<std::string>> options;
  for (const char* place : {"a", "b"}) {
    std::filesystem::create_directory(directory_ / place);
    options.push_back({"--wdir", (directory_ / place).string()});
  }
  for (const bool dry_run : {true, false}) {
    std::vector<std::string> arguments = Arguments({"run.directory=run"});
    if (dry_run) arguments.push_back("--dry-run");
    ExpectBadInput(RunCommand(EyrieCommand(options, arguments)),
                   {"run.directory: run on ", "all ranks must share it"});
    EXPECT_EQ(std::filesystem::exists(directory_ / "a" / "run"), !dry_run);
    EXPECT_FALSE(std::filesystem::exists(directory_ / "a" / "run" / "metrics.jsonl"));
  }
  // Nothing stays behind where they do.
  EXPECT_EQ(Train(2, {"train.stop_after=1"}).code, 0);
  for (const auto& entry : std::filesystem::directory_iterator(run_)) {
    EXPECT_FALSE(entry.path().filename().string().starts_with(".shared")) << entry.path();
  }
}

// What cannot be removed, an old checkpoint that a reader holds or another's files, costs no run.
TEST_F(RunDirectoryTest, AnOldCheckpointThatStaysEndsNoRun) {
  const std::vector<std::string> settings = {"checkpoint.interval=5", "checkpoint.keep=1"};
  const auto stay = run_ / "checkpoints" / ".step-00000003.tmp-7";
  std::filesystem::create_directories(stay);
  std::ofstream(stay / "shard") << "x";
  const auto keep = [&](bool kept) {
    return Finish(Start({"chattr", kept ? "+i" : "-i", stay.string()}, log_), log_).code == 0;
  };
  if (geteuid() != 0) {
    std::filesystem::permissions(stay, std::filesystem::perms::owner_read);
  } else if (!keep(true)) {
    GTEST_SKIP() << "the file system has no attributes that stop its owner";
  }
  const ProcessResult result = Train(2, settings);
  if (geteuid() != 0) {
    std::filesystem::permissions(stay, std::filesystem::perms::owner_all);
  } else {
    EXPECT_TRUE(keep(false));
  }
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find(stay.string() + ": cannot remove"), std::string::npos) << result.err;
  // The others went.
  EXPECT_FALSE(std::filesystem::exists(run_ / "checkpoints" / "step-00000015"));
  EXPECT_TRUE(std::filesystem::exists(run_ / "checkpoints" / "step-00000020"));
}

TEST_F(RunDirectoryTest, AResumeWithOtherDataSaysSo) {
  ASSERT_EQ(Train(0, {"train.stop_after=2"}).code, 0);
  const ProcessResult same = Train(0, {"train.stop_after=2"});
  EXPECT_EQ(same.code, 0);
  EXPECT_EQ(same.err.find("train.seed"), std::string::npos) << same.err;
  const ProcessResult other = Train(0, {"train.stop_after=2", "train.seed=8"});
  EXPECT_EQ(other.code, 0);
  EXPECT_NE(other.err.find("train.seed was 7, and is 8"), std::string::npos) << other.err;
}

}  // namespace
}  // namespace eyrie
