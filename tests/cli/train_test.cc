// What a user meets: bad input, signals, resuming, help. Under mpirun where ranks must agree.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <thread>

#include "launcher/checkpoint.h"
#include "tests/support/training_test.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class TrainTest : public TrainingTest {
 protected:
  fs::path Checkpoint(int step) const { return run_ / "checkpoints" / CheckpointName(step); }
};

void FlipByte(const fs::path& file, int64_t from_end) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(-from_end, std::ios::end);
  const char byte = static_cast<char>(stream.get());
  stream.seekp(-from_end, std::ios::end);
  stream.put(static_cast<char>(byte ^ 0x10));
}

TEST_F(TrainTest, ConfigurationErrorsNameTheField) {
  for (const int ranks : {0, 4}) {
    ExpectBadInput(Train(ranks, {"train.stepz=3"}), {"train.stepz", "unknown field \"stepz\""});
    ExpectBadInput(Train(ranks, {"train.steps=many"}), {"train.steps=many", "an integer"});
    ExpectBadInput(Train(ranks, {"optimizer.schedule=COSIN"}), {"COSINE", "LINEAR"});
    ExpectBadInput(Train(ranks, {"model.width"}), {"--set model.width", "path=value"});
    ExpectBadInput(Train(ranks, {"model.pattern=recurrent+geglu,recurent"}),
                   {"model.pattern", "\"recurent\"", "local_attention"});
  }
  // An entry is a mixer, perhaps with a channel mixer behind it, and nothing else.
  for (const std::string entry : {"attention+local_attention", "geglu+sglu", "geglu+recurrent",
                                  "recurrent+recurrent", "recurrent+geglu+geglu"}) {
    ExpectBadInput(Train(0, {"model.pattern=" + entry}),
                   {"\"" + entry + "\" is not \"mixer\" or \"mixer+channel_mixer\""});
  }
  ExpectBadInput(Train(0, {"model.pattern=recurrent+"}), {"unknown mixer \"\""});
  // A name from a file cannot break the line; found by fuzzing.
  ExpectBadInput(Train(0, {"model.pattern=recur\nent\t"}), {"recur\\x0aent\\x09"});
  // Everything that is wrong, in one line.
  ExpectBadInput(Train(2, {"train.steps=0", "data.train=", "optimizer.beta1=1.5"}),
                 {"train.steps", "data.train", "optimizer.beta1"});

  const auto replace = [&](const std::string& from, const std::string& to) {
    std::string text = SmallTrainingConfig(data_, run_);
    text.replace(text.find(from), from.size(), to);
    WriteText(config_, text);
  };
  replace("steps: 20", "stepz: 20");
  ExpectBadInput(Train(2, {}), {config_ + ":", "stepz"});
  replace("steps: 20", "steps: \"x\"");
  ExpectBadInput(Train(2, {}), {config_ + ":", "integer"});
  fs::remove(config_);
  ExpectBadInput(Train(2, {}), {config_});
}

TEST_F(TrainTest, LayoutErrorsNameTheWidths) {
  ExpectBadInput(Train(3, {"parallel.tensor=3"}),
                 {"model.attention.heads = 4", "model.recurrent.gate_blocks = 4",
                  "model.mlp.width = 64", "model.vocab_size = 64", "parallel.tensor = 3"});
  ExpectBadInput(Train(4, {"parallel.tensor=2", "parallel.data=4"}),
                 {"data 4 x sequence 1 x tensor 2", "4 ranks"});
  ExpectBadInput(Train(3, {"parallel.tensor=2"}), {"tensor 2", "3 ranks"});
  ExpectBadInput(Train(3, {}), {"train.global_batch_size = 8"});
  ExpectBadInput(Train(3, {"parallel.sequence=3"}),
                 {"train.sequence_length = 32", "parallel.sequence"});
  ExpectBadInput(Train(4, {"parallel.sequence=4", "train.sequence_length=8"}),
                 {"train.sequence_length = 8", "2 tokens", "halo of 3", "recurrent"});
  ExpectBadInput(Train(2, {"parallel.sequence=2", "train.chunk_length=12"}),
                 {"train.sequence_length = 32", "train.chunk_length x parallel.sequence = 24"});
  ExpectBadInput(Train(2, {"parallel.sequence=2", "train.chunk_length=2"}),
                 {"train.chunk_length x parallel.sequence = 4", "2 tokens", "halo of 3"});
  ExpectBadInput(Train(0, {"run.device=cuda"}), {"run.device"});
}

TEST_F(TrainTest, TokenFileErrorsNameTheFile) {
  ExpectBadInput(Train(4, {"data.train=" + data_ + "-missing"}), {data_ + "-missing"});
  fs::resize_file(data_ + ".bin", fs::file_size(data_ + ".bin") / 2);
  ExpectBadInput(Train(4, {}), {data_ + ".bin"});
  fs::resize_file(data_ + ".idx", 20);
  ExpectBadInput(Train(4, {}), {data_ + ".idx"});

  WriteTokenFile(data_, 100, 64, 3);
  ExpectBadInput(Train(2, {"data.tokenizer=sentencepiece:" + data_}), {data_});
  ExpectBadInput(Train(2, {"data.tokenizer=byte"}), {"data.tokenizer", "257", "model.vocab_size"});
  WriteTokenFile(data_, 100, 65, 3);
  ExpectBadInput(Train(4, {"parallel.tensor=2"}), {data_ + ".bin", "64", "model.vocab_size"});
  WriteTokenFile(data_, 1, 64, 3);
  ExpectBadInput(Train(2, {"train.sequence_length=4000"}), {data_});
}

TEST_F(TrainTest, DamagedCheckpointsNameTheFile) {
  ASSERT_EQ(Train(2, {"parallel.tensor=2", "train.stop_after=2"}).code, 0);
  const fs::path checkpoint = Checkpoint(2);
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  }
  std::sort(shards.begin(), shards.end());
  ASSERT_EQ(shards.size(), 2u);

  // Each layout reads it, and refuses it once damaged.
  ExpectBadInput(Train(2, {"model.recurrent.width=96"}),
                 {checkpoint.string(), "model.recurrent.width", "48", "96"});
  FlipByte(shards[1], 100);
  for (const int ranks : {0, 2, 4}) {
    ExpectBadInput(Train(ranks, {}), {shards[1].filename().string()});
  }
  ExpectBadInput(RunEyrie(0, {"checkpoint", "verify", checkpoint.string()}),
                 {shards[1].filename().string()});
  FlipByte(shards[1], 100);
  EXPECT_EQ(RunEyrie(0, {"checkpoint", "verify", checkpoint.string()}).code, 0);
  FlipByte(checkpoint / "manifest.textproto", 400);
  ExpectBadInput(Train(4, {}), {"manifest.textproto"});
  FlipByte(checkpoint / "manifest.textproto", 400);
  fs::remove(shards[0]);
  for (const int ranks : {0, 4}) {
    ExpectBadInput(Train(ranks, {}), {shards[0].filename().string()});
  }
  ExpectBadInput(RunEyrie(2, {"generate", "--checkpoint", checkpoint.string(), "--prompt", "a",
                              "--max-tokens", "3", "--tokenizer", "byte"}),
                 {shards[0].filename().string()});
  ExpectBadInput(RunEyrie(0, {"checkpoint", "verify", checkpoint.string()}),
                 {shards[0].filename().string()});
}

TEST_F(TrainTest, ResumeIsAChoice) {
  const std::string elsewhere = (directory_ / "elsewhere").string();
  ExpectBadInput(Train(2, {"checkpoint.resume=" + elsewhere}), {elsewhere});
  ASSERT_EQ(Train(0, {"train.stop_after=2"}).code, 0);
  ExpectBadInput(Train(2, {"checkpoint.resume=never"}), {"checkpoint.resume", "step-00000002"});
}

TEST_F(TrainTest, SignalsSaveAndEnd) {
  for (const auto& [number, code] : {std::pair{SIGTERM, 143}, {SIGINT, 130}, {SIGUSR1, 143}}) {
    for (const int ranks : {0, 2}) {
      const fs::path run = directory_ / ("signal-" + std::to_string(number * 10 + ranks));
      const std::string log = run.string() + "-log";
      const pid_t child =
          Start(EyrieCommand(ranks, {"train", "--config", config_, "--set", "train.steps=1000000",
                                     "--set", "run.directory=" + run.string()}),
                log);
      ASSERT_TRUE(WaitForSteps(run, 5)) << ReadFile(log + ".err");
      if (ranks == 0 || number == SIGUSR1) {
        kill(child, number);  // mpirun passes SIGUSR1 on to every rank
      } else {
        // The signal reaches a single rank; all of them save and leave.
        const std::string command = "pkill -" + std::to_string(number) + " -o -f '^" +
                                    EYRIE_BINARY " train.*" + run.string() + "'";
        ASSERT_EQ(std::system(command.c_str()), 0);
      }
      const ProcessResult result = Finish(child, log);
      EXPECT_EQ(result.code, code) << result.err;
      const auto metrics = ReadMetrics(run);
      const int64_t last = metrics.back()["step"];
      ExpectParts(result.out,
                  {": stopped by a signal, saved step " + std::to_string(last) + " of"});
      const ProcessResult inspected = RunEyrie(0, {"checkpoint", "verify", run.string()});
      EXPECT_EQ(inspected.code, 0) << inspected.err;
      EXPECT_NE(inspected.out.find(std::to_string(last)), std::string::npos) << inspected.out;
    }
  }
}

TEST_F(TrainTest, KeepsTheNewestCheckpoints) {
  ASSERT_EQ(Train(2, {"checkpoint.interval=4", "checkpoint.keep=2"}).code, 0);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run_ / "checkpoints")) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"step-00000016", "step-00000020"}));
}

TEST_F(TrainTest, WritesWhatTheContractSays) {
  const ProcessResult result =
      Train(2, {"parallel.tensor=2", "run.log_interval=5", "train.validation_interval=10"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto metrics = ReadMetrics(run_);
  ASSERT_EQ(metrics.size(), 4u);
  for (const auto& line : metrics) {
    for (const char* key : {"step", "loss", "grad_norm", "learning_rate", "tokens", "step_seconds",
                            "tokens_per_second"}) {
      EXPECT_TRUE(line.contains(key)) << key;
    }
    EXPECT_EQ(line["tokens"].get<int64_t>(), line["step"].get<int64_t>() * 8 * 32);
    EXPECT_EQ(line.contains("validation_loss"), line["step"].get<int64_t>() % 10 == 0);
  }
  const std::string resolved = ReadFile(run_ / "config.textproto");
  EXPECT_NE(resolved.find("tensor: 2"), std::string::npos);
  EXPECT_NE(resolved.find("beta2: 0.95"), std::string::npos);
  EXPECT_NE(result.out.find("step 20/20"), std::string::npos) << result.out;
  // The resolved configuration is a configuration.
  const ProcessResult again =
      RunEyrie(2, {"train", "--config", (run_ / "config.textproto").string(), "--set",
                   "run.directory=" + (directory_ / "again").string()});
  EXPECT_EQ(again.code, 0) << again.err;
}

TEST_F(TrainTest, OtherCommandsRefuseBadArguments) {
  ASSERT_EQ(Train(0, {"train.stop_after=1"}).code, 0);
  const std::string run = run_.string();
  const std::string output = (directory_ / "out.safetensors").string();
  ExpectBadInput(RunEyrie(0, {"eval", "--checkpoint", data_, "--data", data_}), {data_});
  ExpectBadInput(RunEyrie(2, {"eval", "--checkpoint", run, "--data", run}), {run});
  ExpectBadInput(
      RunEyrie(2, {"eval", "--checkpoint", run, "--data", data_, "--set", "parallel.tensor=3"}),
      {"parallel"});
  ExpectBadInput(
      RunEyrie(2, {"logits", "--checkpoint", run, "--tokens", "1 2 64", "--output", output}),
      {"--tokens", "64"});
  ExpectBadInput(
      RunEyrie(0, {"logits", "--checkpoint", run, "--tokens", "1 x", "--output", output}),
      {"--tokens", "\"x\""});
  ExpectBadInput(
      RunEyrie(2, {"generate", "--checkpoint", run, "--prompt", "a", "--max-tokens", "3"}),
      {"data.tokenizer"});
  ExpectBadInput(RunEyrie(2, {"generate", "--checkpoint", run, "--prompt", "a", "--max-tokens", "3",
                              "--tokenizer", "byte"}),
                 {"--tokenizer", "257", "model.vocab_size"});
  ExpectBadInput(RunEyrie(2, {"generate", "--checkpoint", run}), {"--prompt"});
  ExpectBadInput(RunEyrie(4, {"evaluate"}), {"evaluate"});
  EXPECT_FALSE(fs::exists(output));
}

TEST(HelpTest, EveryCommandExplainsItself) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{},
                                                  {"train"},
                                                  {"eval"},
                                                  {"generate"},
                                                  {"logits"},
                                                  {"tokenize"},
                                                  {"synth"},
                                                  {"checkpoint"},
                                                  {"checkpoint", "inspect"},
                                                  {"checkpoint", "verify"},
                                                  {"checkpoint", "reshard"}}) {
    std::vector<std::string> arguments = command;
    arguments.push_back("--help");
    const ProcessResult result = RunEyrie(0, arguments);
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_GT(result.out.size(), 150u) << result.out;
  }
  EXPECT_EQ(RunEyrie(0, {"--version"}).out, "eyrie 0.1.0\n");
}

}  // namespace
}  // namespace eyrie
