// Synthetic data and given labels as a user meets them: good input, and bad input with its message.
#include <gtest/gtest.h>

#include "tests/support/training_test.h"

namespace eyrie {
namespace {

class SynthTest : public TrainingTest {
 protected:
  std::string Path(const std::string& name) const { return (directory_ / name).string(); }
  ProcessResult TrainOnLabels(std::vector<std::string> settings) {
    settings.push_back("data.labels=GIVEN");
    return Train(2, settings);
  }
};

TEST_F(SynthTest, WritesWhatItSaysAndTrainsOnIt) {
  ProcessResult result =
      RunEyrie(0, {"synth", "associative-recall", "--pairs", "4", "--vocab", "64", "--length", "32",
                   "--sequences", "500", "--output", data_});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, data_ + ": 500 sequences of 32 tokens, 2000 labels\n");
  // The same again is the same file; another seed is not.
  const std::string bytes = ReadFile(data_ + ".bin"), labels = ReadFile(data_ + ".labels.bin");
  for (const auto& [seed, same] : {std::pair{"0", true}, {"1", false}}) {
    ASSERT_EQ(
        RunEyrie(0, {"synth", "associative-recall", "--pairs", "4", "--vocab", "64", "--length",
                     "32", "--sequences", "500", "--seed", seed, "--output", Path("again")})
            .code,
        0);
    EXPECT_EQ(ReadFile(Path("again.bin")) == bytes, same);
    EXPECT_EQ(ReadFile(Path("again.labels.bin")) == labels, same);
  }
  // Each task with its defaults.
  for (const auto& [task, says] : {std::pair{"selective-copying", "4096 tokens, 48 labels"},
                                   {"induction-heads", "256 tokens, 3 labels"},
                                   {"associative-recall", "64 tokens, 24 labels"},
                                   {"parity", "40 tokens, 3 labels"}}) {
    result = RunEyrie(0, {"synth", task, "--sequences", "3", "--output", Path("default")});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.out, Path("default") + ": 3 sequences of " + says + "\n");
  }

  result = TrainOnLabels({"parallel.tensor=2"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto last = ReadMetrics(directory_ / "run").back();
  EXPECT_EQ(last["tokens"], 20 * 8 * 32);
  // The run validates on the first ten sequences of the same file.
  result = RunEyrie(0, {"eval", "--checkpoint", Path("run"), "--data", data_, "--sequences", "10"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto object = nlohmann::json::parse(result.out);
  EXPECT_EQ(object["tokens"], 40);
  EXPECT_EQ(object["sequences"], 10);
  EXPECT_EQ(object["accuracy"], last["validation_accuracy"]);
  EXPECT_NEAR(object["loss"], last["validation_loss"], 1e-5);
  EXPECT_LE(object["exact_sequences"], object["accuracy"]);
}

TEST_F(SynthTest, RefusesWhatDoesNotFit) {
  const auto synth = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "synth");
    return RunEyrie(0, arguments);
  };
  ExpectBadInput(synth({}), {"subcommand"});
  ExpectBadInput(synth({"sorting"}), {"subcommand"});
  ExpectBadInput(synth({"parity", "--sequences", "3"}), {"--output"});
  ExpectBadInput(synth({"parity", "--output", Path("x")}), {"--sequences"});
  ExpectBadInput(synth({"parity", "--output", Path("x"), "--sequences", "0"}), {"--sequences"});
  ExpectBadInput(synth({"parity", "--output", Path("x/"), "--sequences", "3"}), {"--output"});
  ExpectBadInput(synth({"parity", "--output", Path("x"), "--sequences", "3", "--pairs", "3"}),
                 {"--pairs"});
  ExpectBadInput(synth({"parity", "--output", Path("config.textproto/x"), "--sequences", "3"}),
                 {"config.textproto"});
  ExpectBadInput(
      synth({"selective-copying", "--length", "16", "--output", Path("x"), "--sequences", "3"}),
      {"--length: 16 is less than 32"});
  ExpectBadInput(
      synth({"associative-recall", "--vocab", "many", "--output", Path("x"), "--sequences", "3"}),
      {"--vocab"});
  EXPECT_FALSE(std::filesystem::exists(Path("x.bin")));
  const ProcessResult help = synth({"parity", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("--shortest"), std::string::npos);
}

TEST_F(SynthTest, LabelsThatDoNotFitStopTheRun) {
  ExpectBadInput(TrainOnLabels({}), {data_ + ".labels.idx"});
  // Labels of another file.
  WriteTokenFile(data_ + ".labels", 90, 64, 3);
  ExpectBadInput(TrainOnLabels({}), {data_ + ".labels.bin"});
  // No label counts.
  const int64_t tokens = IndexedDataset(data_).total_tokens();
  {
    IndexedDatasetWriter writer(data_ + ".labels", 65);
    writer.AddDocument(std::vector<int32_t>(static_cast<size_t>(tokens), 0));
    writer.Finish();
  }
  ExpectBadInput(TrainOnLabels({}), {data_ + ".labels.bin: step 1 has no label that counts"});
  // A label that is no id of the model.
  {
    IndexedDatasetWriter writer(data_ + ".labels", 100);
    writer.AddDocument(std::vector<int32_t>(static_cast<size_t>(tokens), 65));
    writer.Finish();
  }
  ExpectBadInput(TrainOnLabels({}),
                 {data_ + ".labels.bin: label 0 is 65, not from 0 to model.vocab_size = 64"});
}

}  // namespace
}  // namespace eyrie
