// A run's directory is one run's at a time.
#include <signal.h>

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

}  // namespace
}  // namespace eyrie
