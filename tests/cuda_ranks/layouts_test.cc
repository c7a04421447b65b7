// Two GPUs train as one does, and the run ends when one of them is lost.
#include "tests/equality/layouts.h"

#include <gtest/gtest.h>
#include <signal.h>

#include "core/device.h"
#include "tests/support/hang.h"
#include "tests/support/timeline.h"

namespace eyrie {
namespace {

constexpr Layout kPairs[] = {{"t2", 2, 1, 2}, {"d2", 1, 2, 2}, {"s2", 1, 1, 2, 2}};

class CudaRanksTest : public LayoutsTest {
 protected:
  void SetUp() override { ASSERT_GE(cuda::DeviceCount(), 2) << "these tests take two GPUs"; }
};

// By mixer.
class CudaRanksMixerTest : public CudaRanksTest, public testing::WithParamInterface<const char*> {};

TEST_P(CudaRanksMixerTest, TwoGpusEqualOneInFloat32) {
  const auto train = [&](const Layout& layout) {
    return Train(
        layout.name, layout,
        {"run.device=cuda", "train.precision=FLOAT32", StrCat("model.pattern=", GetParam()),
         "model.mlstm.key_width=64", "model.mlstm.width=512"});
  };
  const auto one = train(kOne);
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back()["loss"].get<double>(), 0.9 * one.front()["loss"].get<double>());
  for (const Layout& layout : kPairs) ExpectSame(train(layout), one, 1e-4, layout.name);
}

INSTANTIATE_TEST_SUITE_P(Mixers, CudaRanksMixerTest,
                         testing::Values("recurrent+geglu", "mamba", "lightning_attention+swiglu",
                                         "mlstm", "mlstm_large+swiglu", "slstm+geglu_erf",
                                         "local_attention+geglu"));

TEST_F(CudaRanksTest, TwoGpusEqualOneInMixedPrecisionButForRounding) {
  const auto train = [&](const Layout& layout) {
    return Train(layout.name, layout, {"run.device=cuda", "train.precision=MIXED"});
  };
  const auto one = train(kOne);
  ASSERT_EQ(one.size(), 20u);
  for (const Layout& layout : kPairs) ExpectSame(train(layout), one, 3e-2, layout.name);
}

// As launchers start ranks that show each its own GPU.
TEST_F(CudaRanksTest, EachRankMaySeeItsOwnGpuAlone) {
  const std::string config = WriteText(
      directory_ / "own.textproto", SmallTrainingConfig(directory_ / "data", directory_ / "own"));
  const std::vector<std::vector<std::string>> options = {{"-x", "CUDA_VISIBLE_DEVICES=0"},
                                                         {"-x", "CUDA_VISIBLE_DEVICES=1"}};
  const ProcessResult result = RunCommand(
      EyrieCommand(options, WithSettings({"train", "--config", config}, {"run.device=cuda"})));
  EXPECT_EQ(result.code, 0) << result.err;
  ExpectSame(ReadMetrics(directory_ / "own"),
             Train("all", {"d2", 1, 2, 2}, {"run.device=cuda", "parallel.data=2"}), 0.0, "own");
}

TEST_F(CudaRanksTest, RunsRepeatBitByBit) {
  for (const Layout& layout : kPairs) {
    ExpectBitwise("a", "b", layout, {"run.device=cuda", "train.precision=MIXED"});
  }
}

// Times are those of the streams; gradients travel under the backward pass.
TEST_F(CudaRanksTest, TheTimelineShowsWhatTheGpusDid) {
  // Microseconds: times are float32 milliseconds, and the host's clock is not the GPU's.
  constexpr double kResolution = 20.0;
  for (const Layout& layout : kPairs) {
    SCOPED_TRACE(layout.name);
    const std::string file = (directory_ / StrCat(layout.name, ".json")).string();
    Train(layout.name, layout,
          {"run.device=cuda", StrCat("run.trace=", file), "run.trace_steps=3",
           "parallel.bucket_bytes=4096"});
    const std::map<int, Timeline> ranks = ReadTimelines(file);
    ASSERT_EQ(ranks.size(), 2u);
    const char* axis = layout.tensor > 1 ? "tensor" : layout.data > 1 ? "replicas" : "sequence";
    for (const auto& [rank, timeline] : ranks) {
      timeline.ExpectOneThingAtATime(kResolution);
      const auto operations = timeline.Along(timeline.communication, axis);
      ASSERT_GT(operations.size(), 6u);
      EXPECT_FALSE(timeline.Along(timeline.waits, axis).empty());
      double hidden = 0.0;
      for (size_t i = 0; i < operations.size(); ++i) {
        // Of one communicator, one after the other.
        if (i > 0) {
          EXPECT_GE(operations[i].begin, operations[i - 1].end - kResolution);
        }
        for (const auto& computing : timeline.compute) hidden += Overlap(computing, operations[i]);
      }
      if (layout.data > 1) {
        EXPECT_GT(hidden, 0.0);
      }
    }
  }
}

TEST_F(CudaRanksTest, APeerThatHangsEndsTheJob) {
  for (const Layout& layout : kPairs) {
    ExpectHangEndsJob(directory_, layout.name,
                      {"run.device=cuda", StrCat("parallel.tensor=", layout.tensor),
                       StrCat("parallel.sequence=", layout.sequence)});
  }
}

TEST_F(CudaRanksTest, APeerThatHangsWhereRanksConnectEndsTheJob) {
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe");
  const std::filesystem::path library = program.parent_path() / "libstopping_nccl.so";
  ASSERT_TRUE(std::filesystem::exists(library)) << library;
  setenv("LD_PRELOAD", library.c_str(), 1);
  const TrainingJob job(directory_, "unconnected",
                        {"run.device=cuda", "parallel.tensor=2", "run.timeout_seconds=3"});
  unsetenv("LD_PRELOAD");
  const ProcessResult result = job.Finish();
  EXPECT_EQ(result.code, 3);
  // To connect takes seconds; half a minute is granted.
  EXPECT_GT(result.seconds, 29.0);
  EXPECT_LT(result.seconds, 60.0);
  const std::string expected =
      "nothing has finished for 30 s (run.timeout_seconds), in starting it";
  EXPECT_NE(OnlyLine(result).find(expected), std::string::npos) << result.err;
  EXPECT_TRUE(job.RanksAreGone());
}

// Whose steps are replayed graphs. In bfloat16 the ranks' sums are rounded otherwise than one
// rank's, which is enough for another token.
TEST_F(CudaRanksTest, DecodingEndsWithAPeerThatHangsAndNotBefore) {
  Train("trained", kPairs[0],
        {"run.device=cuda", "train.precision=FLOAT32", "model.vocab_size=258"});
  const std::filesystem::path run = directory_ / "trained";
  const auto generate = [&](int tokens) -> std::vector<std::string> {
    return {"generate",
            "--checkpoint",
            run.string(),
            "--tokenizer",
            "byte",
            "--prompt",
            "ab",
            "--set",
            "run.timeout_seconds=2",
            "--set",
            "train.precision=FLOAT32",
            "--temperature",
            "0",
            "--max-tokens",
            std::to_string(tokens)};
  };
  const ProcessResult one = RunEyrie(1, generate(30)), two = RunEyrie(2, generate(30));
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(two.code, 0) << two.err;
  EXPECT_EQ(one.out, two.out);

  const std::string log = (directory_ / "generate").string();
  const pid_t job = Start(EyrieCommand(2, generate(10'000'000)), log);
  // Twice the timeout after its first tokens it still runs.
  for (int i = 0; i < 600 && ReadFile(log + ".out").size() < 100; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  std::this_thread::sleep_for(std::chrono::seconds(4));
  ExpectHangEnds(run, [&] { return Finish(job, log); });
}

TEST_F(CudaRanksTest, APeerThatDiesEndsTheJob) {
  const TrainingJob job(directory_, "killed", {"run.device=cuda"});
  ASSERT_TRUE(job.Underway());
  kill(job.ranks().front(), SIGKILL);
  const ProcessResult result = job.Finish();
  EXPECT_NE(result.code, 0);
  EXPECT_LT(result.seconds, 30.0);
  EXPECT_TRUE(job.RanksAreGone());
}

}  // namespace
}  // namespace eyrie
