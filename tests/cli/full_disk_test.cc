// Disks that fill up while a run saves: it ends with one line, and goes on where there is room.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <map>
#include <thread>

#include "tests/support/training_test.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class FullDiskTest : public TrainingTest {
 protected:
  // A training run in the directory `name`.
  std::vector<std::string> RunIn(const std::string& name, std::vector<std::string> settings) const {
    settings.push_back("run.directory=" + (directory_ / name).string());
    return Arguments(settings);
  }
  // The names in a run's checkpoints/, hidden ones too.
  std::vector<std::string> Checkpoints(const std::string& name) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_ / name / "checkpoints")) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  // A run that was cut off and resumed took the steps that another took in one piece.
  void ExpectSameLosses(const std::string& resumed, const std::string& whole) const {
    const auto actual = ReadMetrics(directory_ / resumed),
               expected = ReadMetrics(directory_ / whole);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(actual[i]["step"], expected[i]["step"]);
      EXPECT_EQ(actual[i]["loss"], expected[i]["loss"]) << "step " << i + 1;
    }
  }
};

TEST_F(FullDiskTest, AFileThatMayNotGrowEndsTheRunAndItResumes) {
  for (const auto& [name, setting] : std::map<std::string, std::string>{
           {"asynchronous", "checkpoint.asynchronous=true"},
           {"waiting", "checkpoint.asynchronous=false"},
           // The failure comes while updated parameters are under way.
           {"sharded", "parallel.zero=OPTIMIZER_STATE"}}) {
    const std::vector<std::string> settings = {"train.steps=100000", "checkpoint.interval=5",
                                               "train.validation_interval=0", setting};
    const std::string log = (directory_ / (name + "-log")).string();
    std::vector<std::string> command = EyrieCommand(2, RunIn(name, settings));
    command.insert(command.begin(), {"timeout", "--kill-after=5", "300"});
    const pid_t job = Start(command, log);
    const fs::path first = directory_ / name / "checkpoints" / "step-00000005";
    for (int i = 0; i < 3000 && !fs::exists(first); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    // From now on one rank can write metrics and logs, but no shard.
    const std::vector<pid_t> ranks = RanksOf(directory_ / name);
    ASSERT_EQ(ranks.size(), 2u) << ReadFile(log + ".err");
    rlimit limit{};
    ASSERT_EQ(prlimit(ranks[1], RLIMIT_FSIZE, nullptr, &limit), 0);
    limit.rlim_cur = 128 << 10;
    ASSERT_EQ(prlimit(ranks[1], RLIMIT_FSIZE, &limit, nullptr), 0);

    const ProcessResult result = Finish(job, log);
    EXPECT_EQ(result.code, 3) << result.err;
    const std::string line = OnlyLine(result);
    EXPECT_NE(line.find((directory_ / name / "checkpoints" / ".step-").string()), std::string::npos)
        << line;
    EXPECT_NE(line.find(".safetensors: cannot write: File too large"), std::string::npos) << line;
    // What was saved before is whole, and nothing else is there.
    for (const std::string& checkpoint : Checkpoints(name)) {
      EXPECT_TRUE(checkpoint.starts_with("step-")) << checkpoint;
      const fs::path path = directory_ / name / "checkpoints" / checkpoint;
      const ProcessResult verified = RunEyrie(0, {"checkpoint", "verify", path.string()});
      EXPECT_EQ(verified.code, 0) << verified.err;
    }
    // Where files may grow, the run goes on.
    std::vector<std::string> more = settings;
    more.push_back("train.stop_after=7");
    const ProcessResult resumed = RunEyrie(2, RunIn(name, more));
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    std::vector<std::string> calm = settings;
    calm.push_back("checkpoint.interval=0");
    calm.push_back("train.stop_after=" +
                   std::to_string(ReadMetrics(directory_ / name).back()["step"].get<int64_t>()));
    ASSERT_EQ(RunEyrie(2, RunIn("calm-" + name, calm)).code, 0);
    ExpectSameLosses(name, "calm-" + name);
  }
}

// Needs a file system of its own to fill: root, or user namespaces.
TEST_F(FullDiskTest, NoSpaceLeftEndsTheRunAndItResumes) {
  const std::vector<std::string> settings = {"checkpoint.interval=10"};
  ASSERT_EQ(RunEyrie(2, RunIn("calm", settings)).code, 0);
  int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(directory_ / "calm/checkpoints/step-00000010")) {
    bytes += static_cast<int64_t>(entry.file_size());
  }
  // One checkpoint fits, a second beside it does not.
  const fs::path mounted = directory_ / "full" / "checkpoints";
  fs::create_directories(mounted);
  const std::string mount =
      "mount -t tmpfs -o size=" + std::to_string(bytes * 3 / 2) + " tmpfs " + mounted.string();
  const std::string unshare = geteuid() == 0 ? "unshare -m " : "unshare -rm ";
  if (std::system((unshare + mount + " 2>/dev/null").c_str()) != 0) {
    GTEST_SKIP() << "cannot mount a tmpfs";
  }
  // All of it in one script: the tmpfs goes with the script's namespace.
  std::string train = "timeout --kill-after=5 300";
  for (const std::string& word : EyrieCommand(2, RunIn("full", settings))) {
    train += " '" + word + "'";
  }
  const std::string log = (directory_ / "log").string();
  const std::string script = mount + " || exit 100\n" +                               //
                             train + "\ncode=$?\n" +                                  //
                             "ls -A " + mounted.string() + " >" + log + ".names\n" +  //
                             EYRIE_BINARY + " checkpoint verify " + mounted.string() +
                             "/step-00000010 || exit 101\n" + "mount -o remount,size=100m " +
                             mounted.string() + " || exit 102\n" + train +
                             " 2>/dev/null || exit 103\n" + "exit $code\n";
  std::vector<std::string> command = {"unshare", geteuid() == 0 ? "-m" : "-rm", "bash", "-c",
                                      script};
  const ProcessResult result = Finish(Start(command, log), log);
  EXPECT_EQ(result.code, 3) << result.err;
  const std::string line = OnlyLine(result);
  EXPECT_NE(line.find((mounted / ".step-00000020.tmp-").string()), std::string::npos) << line;
  EXPECT_NE(line.find(": cannot write: No space left on device"), std::string::npos) << line;
  EXPECT_EQ(ReadFile(log + ".names"), "step-00000010\n");
  ExpectSameLosses("full", "calm");
}

}  // namespace
}  // namespace eyrie
