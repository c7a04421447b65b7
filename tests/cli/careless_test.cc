// What a careless user types: each mistake gets one line that names it, and the exit code of bad
// input, at once.
#include <gtest/gtest.h>

#include "tests/support/training_test.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

void ExpectRefused(const std::vector<std::string>& arguments, const std::string& message) {
  eyrie::ExpectRefused(RunEyrie(0, arguments), {message});
}

class CarelessTest : public TrainingTest {};

TEST(CommandTest, MisspeltCommandsAreNamed) {
  ExpectRefused({}, "eyrie takes a subcommand; see eyrie --help");
  ExpectRefused({"resume"}, "\"resume\" is none: eyrie takes a subcommand; see eyrie --help");
  ExpectRefused({"--resume"}, "\"--resume\" is none");
  ExpectRefused({"checkpoint"}, "eyrie checkpoint takes a subcommand");
  ExpectRefused(
      {"checkpoint", "verfy", "runs/a"},
      "\"verfy\" is none: eyrie checkpoint takes a subcommand; see eyrie checkpoint --help");
  ExpectRefused({"bench", "kernel"}, "\"kernel\" is none: eyrie bench takes a subcommand");
  ExpectRefused({"bench", "kernels", "--device", "gpu"}, "--device: gpu not in {auto,cpu,cuda}");
  ExpectRefused({"bench", "kernels", "--threads", "1025"},
                "--threads: 1025 is not a number from 1 to 1024");
}

// Several processes would write the same files.
TEST_F(CarelessTest, CommandsOfOneProcessRefuseRanks) {
  const std::string output = (directory_ / "output").string();
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"tokenize", "--input", config_, "--tokenizer", "byte"},
        {"synth", "parity", "--sequences", "3"},
        {"checkpoint", "reshard", run_.string()},
        {"checkpoint", "import", run_.string()},
        {"checkpoint", "export", run_.string()}}) {
    std::vector<std::string> arguments = command;
    arguments.insert(arguments.end(), {"--output", output});
    ExpectBadInput(RunEyrie(3, arguments),
                   {"eyrie " + command[0], "as one process, without mpirun"});
    EXPECT_FALSE(fs::exists(output + ".bin.partial"));
  }
  EXPECT_EQ(RunEyrie(1, {"synth", "parity", "--sequences", "3", "--output", output}).code, 0);
  // The others would say everything as often as there are ranks.
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"plan", "--config", config_, "--ranks", "1"},
        {"bench", "kernels", "--shape", "1,8,64"},
        {"checkpoint", "inspect", run_.string()},
        {"checkpoint", "verify", run_.string()}}) {
    const ProcessResult result = RunEyrie(3, command);
    ExpectBadInput(result, {"eyrie " + command[0], "as one process, without mpirun"});
    EXPECT_EQ(result.out, "");
  }
}

// A result that could not be written is a failure, and names itself.
TEST_F(CarelessTest, ResultsThatAreLostAreFailures) {
  ASSERT_EQ(Train(0, {"train.stop_after=1"}).code, 0);
  const std::string run = run_.string(), log = (directory_ / "log").string();
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"eval", "--checkpoint", run, "--data", data_},
        {"plan", "--config", config_, "--ranks", "1", "--json"},
        {"checkpoint", "inspect", run},
        {"--help"}}) {
    for (const char* stream : {">/dev/full", ">&-"}) {
      std::vector<std::string> shell = {"bash", "-c", std::string("exec \"$@\" ") + stream, "bash"};
      for (const std::string& word : EyrieCommand(0, command)) shell.push_back(word);
      const ProcessResult result = Finish(Start(shell, log), log);
      EXPECT_EQ(result.code, 3) << command[0] << stream << result.err;
      ExpectParts(OnlyLine(result), {"standard output: cannot write"});
    }
  }
}

TEST_F(CarelessTest, NumbersThatNobodyMeansAreRefusedByField) {
  for (const auto& [setting, message] : std::vector<std::pair<std::string, std::string>>{
           {"model.width=9223372036854775807", "model.width = 9223372036854775807 is more than"},
           {"model.mlp.width=9223372036854775807", "model.mlp.width = 9223372036854775807 is more"},
           {"model.attention.heads=16777220", "model.attention.heads = 16777220 is more than"},
           {"model.vocab_size=2147483648", "model.vocab_size = 2147483648 is more than 2147483647"},
           {"model.depth=2147483647", "model.depth = 2147483647 is more than 4096"},
           {"train.sequence_length=9223372036854775807",
            "train.sequence_length = 9223372036854775"},
           {"train.micro_batch_size=1073741825",
            "train.micro_batch_size = 1073741825 is more than"},
           {"run.threads=1025", "run.threads = 1025 is more than 1024"},
           {"run.timeout_seconds=1000000001", "run.timeout_seconds = 1000000001 is more than"},
           {"run.network_delay_us=9223372036854775807", "run.network_delay_us = 922337203685477"},
           {"model.norm_epsilon=inf", "model.norm_epsilon must be a finite number"},
           {"model.logit_soft_cap=nan", "model.logit_soft_cap must be a finite number"},
           {"model.attention.rotary_base=nan", "model.attention.rotary_base must be a finite"},
           {"optimizer.learning_rate=inf", "optimizer.learning_rate must be a finite number"},
           {"optimizer.weight_decay=inf", "optimizer.weight_decay must be a finite number"},
           {"checkpoint.resume=", "checkpoint.resume is empty"},
       }) {
    ExpectRefused({"train", "--config", config_, "--set", setting}, message);
  }
  // Each of them alone may be meant.
  ExpectRefused({"train", "--config", config_, "--set", "train.micro_batch_size=1073741824",
                 "--set", "train.sequence_length=1073741824"},
                "train.micro_batch_size x train.sequence_length = 1152921504606846976 is more");
  const std::string laptop = EYRIE_SOURCE_DIR "/configs/hardware/laptop.textproto";
  const auto refuse_on_cpu = [&](const std::vector<std::string>& settings) {
    ExpectRefused(
        WithSettings({"plan", "--config", config_, "--ranks", "1", "--hardware", laptop}, settings),
        "model has ");
  };
  refuse_on_cpu({"model.width=16777216", "model.mlp.width=16777216", "model.depth=4096"});
  refuse_on_cpu({"model.attention.heads=16777216", "model.attention.head_width=16777216",
                 "model.width=16777216"});
  EXPECT_FALSE(fs::exists(directory_ / "run"));
  // A window beyond every sequence is a way to have none.
  const ProcessResult wide =
      Train(0, {"model.attention.window=9223372036854775807", "train.stop_after=1"});
  EXPECT_EQ(wide.code, 0) << wide.err;
  // So is a number of steps, after some were done.
  const ProcessResult rest =
      Train(0, {"model.attention.window=9223372036854775807",
                "train.stop_after=9223372036854775807", "run.trace_steps=9223372036854775807"});
  EXPECT_EQ(rest.code, 0) << rest.err;
  EXPECT_EQ(ReadMetrics(run_).back()["step"], 20);

  const std::string run = run_.string();
  const std::vector<std::string> generate = {"generate", "--checkpoint", run,    "--prompt",
                                             "a",        "--tokenizer",  "byte", "--max-tokens"};
  const auto with = [](std::vector<std::string> command, const std::vector<std::string>& more) {
    command.insert(command.end(), more.begin(), more.end());
    return command;
  };
  ExpectRefused(with(generate, {"0"}), "--max-tokens: 0 is not a number from 1 to 1073741824");
  ExpectRefused(with(generate, {"many"}), "--max-tokens: \"many\" is not a number");
  ExpectRefused(with(generate, {"9223372036854775807"}),
                "--max-tokens: 9223372036854775807 is not");
  ExpectRefused(with(generate, {"3", "--temperature", "nan"}),
                "--temperature: nan is not a number");
  ExpectRefused(
      {"eval", "--checkpoint", run, "--data", data_, "--sequence-length", "9223372036854775807"},
      "--sequence-length: 9223372036854775807 is not a number");
  for (const char* option : {"--pairs", "--vocab", "--length"}) {
    ExpectRefused({"synth", "associative-recall", "--sequences", "3", option, "9223372036854775807",
                   "--output", (directory_ / "recall").string()},
                  std::string(option) + ": 9223372036854775807 is not a number from 0 to");
  }
}

TEST_F(CarelessTest, PathsThatCannotBeAreNamed) {
  const std::string folder = (directory_ / "folder").string();
  fs::create_directory(folder);
  ExpectRefused({"train", "--config", folder}, folder + ": is a folder, not a configuration file");
  ExpectRefused({"plan", "--config", config_, "--ranks", "1", "--hardware", folder},
                folder + ": is a folder");
  ExpectRefused({"plan", "--config", config_}, "--ranks is required where parallel.data is 0");
  ExpectRefused({"checkpoint", "verify", ""}, "the path of a checkpoint is empty");

  // Found before the first step, not with the first checkpoint.
  const fs::path file = run_ / "checkpoints";
  fs::create_directory(run_);
  WriteText(file, "");
  ExpectRefused({"train", "--config", config_},
                "run.directory: cannot create " + file.string() + ": Not a directory");
  EXPECT_FALSE(fs::exists(run_ / "metrics.jsonl"));
  fs::remove(file);

  ASSERT_EQ(RunEyrie(0, {"train", "--config", config_, "--set", "train.stop_after=1"}).code, 0);
  const auto logits = [&](const std::string& output) {
    return std::vector<std::string>{"logits",      "--checkpoint", run_.string(), "--tokens",
                                    "1 2 3 4 5 6", "--output",     output};
  };
  ExpectRefused(logits(folder), "--output: " + folder + " is a folder");
  ExpectRefused(logits(folder + "/"), "--output: " + folder + "/ does not name a file");
  ExpectRefused(logits(folder + "/none/x"),
                "--output: " + folder + "/none/x lies in a folder that is not there");

  // Where a file may have 1,024 bytes, nothing of one that is larger stays.
  std::vector<std::string> limited = {"bash", "-c", "ulimit -f 1; exec \"$@\"", "bash"};
  const auto command = EyrieCommand(0, logits(folder + "/logits.safetensors"));
  limited.insert(limited.end(), command.begin(), command.end());
  const std::string log = (directory_ / "log").string();
  const ProcessResult full = Finish(Start(limited, log), log);
  EXPECT_EQ(full.code, 3) << full.err;
  EXPECT_NE(OnlyLine(full).find("logits.safetensors"), std::string::npos) << full.err;
  EXPECT_TRUE(fs::is_empty(folder));
}

}  // namespace
}  // namespace eyrie
