// Training jobs whose ranks come to harm.
#pragma once

#include <signal.h>

#include <chrono>
#include <functional>
#include <thread>

#include "tests/support/eyrie_process.h"

namespace eyrie {

// Two ranks that train in a folder of their own until something ends them.
class TrainingJob {
 public:
  TrainingJob(const TestDirectory& directory, const std::string& name,
              const std::vector<std::string>& settings)
      : run_(directory / name), log_((directory / (name + "-log")).string()) {
    WriteTokenFile((directory / "data").string(), 200, 64, 1);
    const std::string config =
        WriteText(run_.string() + ".textproto", SmallTrainingConfig(directory / "data", run_));
    const std::vector<std::string> train = {"train", "--config", config, "--set",
                                            "train.steps=1000000"};
    job_ = Start(EyrieCommand(2, WithSettings(train, settings)), log_);
  }

  // Waits for the first steps; false if none comes.
  bool Underway() const { return WaitForSteps(run_, 3) && ranks().size() == 2; }
  const std::filesystem::path& run() const { return run_; }
  std::vector<pid_t> ranks() const { return RanksOf(run_); }
  bool RanksAreGone() const { return eyrie::RanksAreGone(run_); }
  ProcessResult Finish() const { return eyrie::Finish(job_, log_); }

 private:
  std::filesystem::path run_;
  std::string log_;
  pid_t job_ = -1;
};

// Stops one rank of a run without ending it: another says so, and the job, which `finish` waits
// for, fails in the few seconds of run.timeout_seconds that it was given.
inline void ExpectHangEnds(const std::filesystem::path& run,
                           const std::function<ProcessResult()>& finish) {
  const std::vector<pid_t> ranks = RanksOf(run);
  ASSERT_EQ(ranks.size(), 2u);
  kill(ranks.back(), SIGSTOP);
  const ProcessResult result = finish();
  EXPECT_EQ(result.code, 3);
  EXPECT_GT(result.seconds, 1.0);
  EXPECT_LT(result.seconds, 20.0);
  EXPECT_NE(OnlyLine(result).find("(run.timeout_seconds)"), std::string::npos) << result.err;
  EXPECT_TRUE(RanksAreGone(run));
}

// The same of a run that trains.
inline void ExpectHangEndsJob(const TestDirectory& directory, const std::string& name,
                              std::vector<std::string> settings) {
  SCOPED_TRACE(name);
  settings.push_back("run.timeout_seconds=3");
  const TrainingJob job(directory, "hung-" + name, settings);
  ASSERT_TRUE(job.Underway());
  ExpectHangEnds(job.run(), [&] { return job.Finish(); });
}

}  // namespace eyrie
