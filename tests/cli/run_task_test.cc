// tools/run_task as a user meets it: good input, and bad input with its message.
#include <csignal>

#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class RunTaskTest : public testing::Test {
 protected:
  // In a folder of its own, where data and runs are to lie.
  std::vector<std::string> Command(const std::vector<std::string>& arguments) const {
    std::vector<std::string> command = {
        "env",     "-C",        (directory_ / "").string(), EYRIE_SOURCE_DIR "/tools/run_task",
        "--eyrie", EYRIE_BINARY};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return command;
  }
  ProcessResult RunTask(const std::vector<std::string>& arguments) const {
    std::vector<std::string> command = Command(arguments);
    // A hang must not hang the tests.
    command.insert(command.begin(), {"timeout", "--kill-after=5", "300"});
    const std::string log = (directory_ / "log").string();
    return Finish(Start(command, log), log);
  }
  nlohmann::json Results() const { return nlohmann::json::parse(ReadFile(directory_ / "r.json")); }

  TestDirectory directory_;
};

// Settings that make a run one of seconds.
const std::vector<std::string> kShort = {
    "--set", "train.validation_interval=2", "--set", "optimizer.warmup_steps=1",
    "--set", "run.log_interval=1",          "--set", "run.threads=1"};

std::vector<std::string> Short(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), kShort.begin(), kShort.end());
  return arguments;
}

TEST_F(RunTaskTest, TrainsModelsAtOnceAfterShorterSequences) {
  const ProcessResult result = RunTask(
      Short({"recall", "mamba", "xlstm", "--jobs", "2", "--name", "both", "--json", "r.json",
             "--lengths", "32", "64", "--first-length", "16", "--set", "train.steps=6"}));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find("| model | validation accuracy (%) by step | 32 | 64 |"),
            std::string::npos)
      << result.out;
  const nlohmann::json results = Results();
  ASSERT_EQ(results.size(), 2);
  for (const std::string model : {"mamba", "xlstm"}) {
    SCOPED_TRACE(model);
    EXPECT_EQ(results[model]["accuracy"].size(), 2);
    const auto first = ReadMetrics(directory_ / "runs" / ("tasks-both-" + model + "-first"));
    const auto metrics = ReadMetrics(directory_ / "runs" / ("tasks-both-" + model));
    // A third of the steps at half the length, with as many tokens each; then the others.
    ASSERT_EQ(first.back()["step"], 2);
    EXPECT_EQ(first.back()["tokens"], 2 * 64 * 32);
    ASSERT_EQ(metrics.front()["step"], 3);
    EXPECT_EQ(metrics.back()["step"], 6);
    const auto& last = results[model]["curve"].back();
    EXPECT_EQ(last[0], 6);
    EXPECT_EQ(last[1], metrics.back()["validation_accuracy"]);
  }
}

// Far more steps than a moment takes.
const std::vector<std::string> kLong = {"parity", "slstm",  "--lengths", "40",
                                        "--json", "r.json", "--set",     "train.steps=20000"};

TEST_F(RunTaskTest, TestsWhatTheMinutesLeave) {
  std::vector<std::string> arguments = Short(kLong);
  arguments.insert(arguments.end(), {"--minutes", "0.03"});
  const ProcessResult result = RunTask(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_LT(ReadMetrics(directory_ / "runs" / "tasks-parity-slstm").back()["step"], 20000);
  EXPECT_EQ(Results()["slstm"]["accuracy"].size(), 1);
}

TEST_F(RunTaskTest, StoppedItPrintsWhatItHas) {
  const std::string log = (directory_ / "log").string();
  const pid_t child = Start(Command(Short(kLong)), log);
  const fs::path run = directory_ / "runs" / "tasks-parity-slstm";
  EXPECT_TRUE(WaitForSteps(run, 1)) << ReadFile(log + ".err");
  kill(child, SIGTERM);
  const ProcessResult result = Finish(child, log);
  EXPECT_EQ(result.code, 143) << result.err;
  EXPECT_NE(result.out.find("\n| slstm | "), std::string::npos) << result.out;
  EXPECT_TRUE(Results()["slstm"]["accuracy"].empty());
  EXPECT_FALSE(fs::is_empty(run / "checkpoints"));
}

TEST_F(RunTaskTest, AModelThatFailsLeavesTheOthersToGoOn) {
  // Heads of 64 channels are no heads of another model's.
  const ProcessResult result =
      RunTask(Short({"recall", "mamba", "xlstm", "--jobs", "2", "--json", "r.json", "--lengths",
                     "32", "--set", "train.steps=2", "--set", "model.mlstm.heads=3"}));
  EXPECT_EQ(result.code, 2);
  EXPECT_NE(OnlyLine(result).find("model.mlstm.width"), std::string::npos) << result.err;
  EXPECT_EQ(Results()["mamba"]["accuracy"].size(), 1);
  EXPECT_TRUE(Results()["xlstm"]["accuracy"].empty());
}

TEST_F(RunTaskTest, RefusesBadInput) {
  const auto refused = [&](const std::vector<std::string>& arguments, const std::string& message) {
    const ProcessResult result = RunTask(arguments);
    EXPECT_EQ(result.code, 2);
    EXPECT_NE(result.err.find(message), std::string::npos) << result.err;
  };
  refused({"sorting"}, "sorting");
  refused({"recall", "lstm"}, "recall-lstm.textproto: no such configuration");
  refused({"recall", "--jobs", "0"}, "argument --jobs: invalid positive int value: '0'");
  refused({"recall", "--minutes", "-1"}, "argument --minutes");
  refused({"recall", "--minutes", "nan"}, "argument --minutes");
  refused({"recall", "--first-length", "half"}, "argument --first-length");
  refused({"recall", "--first-length", "32"}, "--first-length 32 is not below 32 tokens");
  refused({"recall", "--eyrie", "./eyrie"}, "--eyrie ./eyrie: no such program");
  EXPECT_FALSE(fs::exists(directory_ / "runs"));
}

}  // namespace
}  // namespace eyrie
