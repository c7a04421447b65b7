// Ranks that die: the job ends, and the run goes on from its last checkpoint, on another layout.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <thread>

#include "tests/support/eyrie_process.h"
#include "tests/support/hang.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// The folders of a run that hold shards: checkpoints; or what is none yet, as a save is under way
// or was left there.
std::set<std::string> Saves(const fs::path& run, bool finished) {
  std::set<std::string> names;
  std::error_code error;  // folders come and go
  fs::directory_iterator entries(run / "checkpoints", error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::path path = entries->path();
    std::error_code gone;
    const bool empty = fs::is_empty(path, gone);
    const bool temporary = path.filename().string().find(".tmp-") != std::string::npos;
    if (!gone && !empty && temporary != finished) {
      names.insert(path.filename());
    }
  }
  return names;
}

// Kills a run of the model `pattern` (empty: a Griffin) so often, each time on a layout drawn anew,
// then lets it go on and expects the steps of one that nobody killed.
void ExpectToSurvive(int all_kills, const std::string& pattern) {
  SCOPED_TRACE(pattern);
  const TestDirectory directory;
  WriteTokenFile((directory / "data").string(), 200, 64, 9);
  const auto arguments = [&](const fs::path& run, int tensor, int sequence = 1) {
    const std::string config =
        WriteText(run.string() + ".textproto", SmallTrainingConfig(directory / "data", run));
    std::vector<std::string> settings{"train.steps=4000",
                                      "train.validation_interval=0",
                                      "checkpoint.interval=1",
                                      "train.global_batch_size=64",
                                      "train.sequence_length=128",
                                      "optimizer.learning_rate=5e-4",
                                      "parallel.tensor=" + std::to_string(tensor),
                                      "parallel.sequence=" + std::to_string(sequence)};
    if (!pattern.empty()) settings.push_back("model.pattern=" + pattern);
    return WithSettings({"train", "--config", config}, settings);
  };
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const fs::path run = directory / "killed";
  int64_t saved = 0;
  bool has_checkpoint = false;  // a step may be done and its save not
  int cut_off = 0;              // saves that a kill left unfinished
  // A few more on a machine so busy that hardly a step was done.
  const auto too_few = [&] { return saved <= all_kills / 6; };
  for (int kills = 0; kills < all_kills || (too_few() && kills < 3 * all_kills); ++kills) {
    struct Layout {
      int ranks, tensor, sequence;
      bool zero, asynchronous;
    };
    const Layout layouts[] = {{4, 2, 1, false, true}, {4, 4, 1, false, true}, {2, 1, 1, true, true},
                              {2, 1, 2, false, true}, {4, 2, 2, true, false}, {4, 2, 1, true, true},
                              {2, 2, 1, false, true}};
    const auto& [ranks, tensor, sequence, zero, asynchronous] =
        layouts[random() % std::size(layouts)];
    std::vector<std::string> words = arguments(run, tensor, sequence);
    if (zero) words.insert(words.end(), {"--set", "parallel.zero=OPTIMIZER_STATE"});
    if (!asynchronous) words.insert(words.end(), {"--set", "checkpoint.asynchronous=false"});
    const std::string log = (directory / ("log-" + std::to_string(kills))).string();
    const std::set<std::string> left = Saves(run, /*finished=*/false);
    const auto save_begun = [&] {
      const std::set<std::string> now = Saves(run, /*finished=*/false);
      return !std::includes(left.begin(), left.end(), now.begin(), now.end());
    };
    const pid_t job = Start(EyrieCommand(ranks, words), log);
    // Any moment: while MPI starts, while a checkpoint is read, while training, nearly always with
    // a save under way: each step begins one. Steps are long enough that few are done in all, so
    // that rounding, which differs between layouts, does not grow.
    for (int i = 0; i < 200 && RanksOf(run).size() < static_cast<size_t>(ranks); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1'500'000));
    const std::vector<pid_t> victims = RanksOf(run);
    ASSERT_FALSE(victims.empty()) << ReadFile(log + ".err");
    // Every other kill waits for a rank that writes, as long as there may be one.
    for (int i = 0; kills % 2 == 1 && i < 20000 && !save_begun(); ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    kill(victims[random() % victims.size()], SIGKILL);
    const ProcessResult result = Finish(job, log);
    EXPECT_NE(result.code, 0);
    EXPECT_LT(result.seconds, 30.0);
    EXPECT_NE(result.err.find("signal 9"), std::string::npos) << result.err;
    EXPECT_TRUE(RanksAreGone(run));
    cut_off += save_begun();
    // What was saved stays good.
    has_checkpoint |= !Saves(run, /*finished=*/true).empty();
    const ProcessResult verified = RunEyrie(0, {"checkpoint", "verify", run.string()});
    if (has_checkpoint) {
      EXPECT_EQ(verified.code, 0) << verified.err;
    }
    if (!ReadMetrics(run, /*unfinished=*/true).empty())
      saved = ReadMetrics(run, /*unfinished=*/true).back()["step"];
  }
  ASSERT_FALSE(too_few()) << saved;
  EXPECT_GT(cut_off, 0);
  const ProcessResult finished =
      RunEyrie(4, WithSettings(arguments(run, 2), {"train.stop_after=5"}));
  ASSERT_EQ(finished.code, 0) << finished.err;

  // The same steps without any accident.
  const auto killed = ReadMetrics(run);
  ASSERT_EQ(RunEyrie(1, WithSettings(arguments(directory / "calm", 1),
                                     {"train.stop_after=" + std::to_string(killed.size()),
                                      "checkpoint.interval=0"}))
                .code,
            0);
  const auto whole = ReadMetrics(directory / "calm");
  ASSERT_EQ(whole.size(), killed.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(killed[i]["step"], whole[i]["step"]);
    const double expected = whole[i]["loss"], actual = killed[i]["loss"];
    EXPECT_LE(std::abs(actual - expected), 1e-5 * expected) << "step " << i + 1;
  }
}

TEST(FaultsTest, AKilledRankEndsTheJobAndTheRunGoesOnOnAnotherLayout) { ExpectToSurvive(20, ""); }

TEST(FaultsTest, EveryFamilySurvivesKills) {
  ExpectToSurvive(6, "mlstm,slstm+geglu_erf,mlstm");
  ExpectToSurvive(6, "mamba");
  ExpectToSurvive(6, "lightning_attention+sglu");
}

TEST(FaultsTest, ARankThatHangsEndsTheJob) {
  const TestDirectory directory;
  ExpectHangEndsJob(directory, "t2", {"parallel.tensor=2"});
  ExpectHangEndsJob(directory, "d2", {});
}

}  // namespace
}  // namespace eyrie
