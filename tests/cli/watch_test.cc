// Watching a run: dry runs, the progress line, and the message of a run that diverges.
#include <gtest/gtest.h>
#include <pty.h>

#include <algorithm>
#include <limits>
#include <map>

#include "layers/model.h"
#include "tests/support/save_checkpoint.h"
#include "tests/support/training_test.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class WatchTest : public TrainingTest {
 protected:
  ProcessResult DryRun(int ranks, const std::vector<std::string>& settings) const {
    std::vector<std::string> arguments = Arguments(settings);
    arguments.push_back("--dry-run");
    return RunEyrie(ranks, arguments);
  }
  // Every file and directory below the test's, with sizes of files.
  std::map<std::string, uintmax_t> Tree() const {
    std::map<std::string, uintmax_t> tree;
    for (const auto& entry : fs::recursive_directory_iterator(directory_ / "")) {
      tree[entry.path()] = entry.is_regular_file() ? entry.file_size() : 0;
    }
    return tree;
  }
};

TEST_F(WatchTest, DryRunSaysWhatWouldHappenAndLeavesNothing) {
  const auto before = Tree();
  for (const int ranks : {0, 4}) {
    const ProcessResult result =
        DryRun(ranks, {"run.directory=" + (directory_ / "a" / "b").string(),
                       ranks == 4 ? "parallel.tensor=2" : "parallel.tensor=1"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.err, "");
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1) << result.out;
    ExpectParts(result.out, {"valid: ", " parameters on ", "256 tokens a step",
                             "steps 1 to 20 of 20", "from fresh parameters", data_ + ": "});
    ExpectParts(result.out, {ranks == 4 ? "4 ranks (data 2 x sequence 1 x tensor 2)"
                                        : "1 rank (data 1 x sequence 1 x tensor 1)"});
    EXPECT_EQ(Tree(), before);
  }

  ASSERT_EQ(Train(2, {"train.stop_after=3"}).code, 0);
  const auto trained = Tree();
  const ProcessResult again = DryRun(2, {"train.stop_after=4"});
  EXPECT_EQ(again.code, 0) << again.err;
  ExpectParts(again.out,
              {"steps 4 to 7 of 20", "from " + (run_ / "checkpoints").string(), "step-00000003"});
  EXPECT_EQ(Tree(), trained);
}

TEST_F(WatchTest, DryRunRefusesWhatARunWould) {
  const auto refused = [&](int ranks, const std::vector<std::string>& settings,
                           const std::vector<std::string>& culprits) {
    const auto before = Tree();
    ExpectBadInput(DryRun(ranks, settings), culprits);
    EXPECT_EQ(Tree(), before);
  };
  for (const int ranks : {0, 2}) {
    refused(ranks, {"train.steps=0"}, {"train.steps"});
    refused(ranks, {"parallel.tensor=3"}, {"model.attention.heads"});
    refused(ranks, {"data.train=" + data_ + "-missing"}, {data_ + "-missing"});
    refused(ranks, {"data.validation=" + data_ + "-missing"}, {data_ + "-missing"});
    refused(ranks, {"model.vocab_size=60"}, {data_ + ".bin", "model.vocab_size"});
    refused(ranks, {"data.tokenizer=byte"}, {"data.tokenizer", "257"});
    refused(ranks, {"checkpoint.resume=" + data_ + "-missing"}, {data_ + "-missing"});
    refused(ranks, {"run.directory=" + config_ + "/below"}, {"run.directory", config_});
  }
  ASSERT_EQ(Train(0, {"train.stop_after=1"}).code, 0);
  const fs::path shard =
      run_ / "checkpoints" / "step-00000001" / "model-00000-of-00001.safetensors";
  ASSERT_TRUE(fs::exists(shard));
  std::fstream stream(shard, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(-100, std::ios::end);
  stream << "xyz" << std::flush;
  for (const int ranks : {0, 2}) refused(ranks, {}, {shard.string()});
}

// Writes NaN into one parameter of a checkpoint, which stays valid.
void Poison(const fs::path& checkpoint, const std::string& parameter) {
  const config::Manifest manifest = ReadManifest(checkpoint);
  const Mesh mesh;
  const Model model(manifest.config().model(), 1);
  ParamStore params(model.params(), mesh, DType::kF32, false);
  ParamStore m(model.params(), mesh, DType::kF32, false),
      v(model.params(), mesh, DType::kF32, false);
  const std::vector<NamedFlat> groups = {
      {"", params.flat_values()}, {"adamw.m/", m.flat_values()}, {"adamw.v/", v.flat_values()}};
  const Position position = LoadCheckpoint(checkpoint, manifest, params, groups);
  const auto& specs = model.params().specs();
  const auto found = std::find_if(specs.begin(), specs.end(),
                                  [&](const ParamSpec& spec) { return spec.name == parameter; });
  ASSERT_NE(found, specs.end()) << parameter;
  params.value(static_cast<ParamId>(found - specs.begin())).data<float>()[3] =
      std::numeric_limits<float>::quiet_NaN();
  SaveCheckpoint(checkpoint.parent_path(), manifest.config(), mesh, params, groups, position);
}

TEST_F(WatchTest, NanStopsWithStepLayerAndSamples) {
  ASSERT_EQ(Train(0, {"train.stop_after=2"}).code, 0);
  const fs::path checkpoint = run_ / "checkpoints" / "step-00000002";
  const fs::path good = directory_ / "good";
  fs::copy(checkpoint, good, fs::copy_options::recursive);
  const std::pair<const char*, const char*> cases[] = {
      {"blocks.1.mlp.down.w", "the output of block 1 (geglu)"},
      {"blocks.2.norm_a.w", "the output of block 2 (local_attention)"},
      {"norm_f.w", "the output of norm_f"}};
  for (const auto& [parameter, layer] : cases) {
    fs::remove_all(checkpoint);
    fs::copy(good, checkpoint, fs::copy_options::recursive);
    Poison(checkpoint, parameter);
    const auto before = Tree();
    for (const bool parallel : {false, true}) {
      const ProcessResult result =
          parallel ? Train(4, {"parallel.tensor=2", "train.recompute=BLOCKS"}) : Train(0, {});
      EXPECT_EQ(result.code, 3) << result.err;
      EXPECT_LT(result.seconds, 60.0);
      // Two steps of eight samples came before; the first microbatch has two.
      ExpectParts(OnlyLine(result),
                  {"step 3: loss nan, ", layer, "samples 16 to 17", "data rank 0"});
      const ProcessResult measured = RunEyrie(
          parallel ? 2 : 0, {"eval", "--checkpoint", checkpoint.string(), "--data", data_});
      EXPECT_EQ(measured.code, 3) << measured.out;
      ExpectParts(OnlyLine(measured), {"the loss on " + data_ + " is not finite"});
      EXPECT_EQ(RunEyrie(0, {"checkpoint", "verify", checkpoint.string()}).code, 0);
      EXPECT_FALSE(fs::exists(run_ / "checkpoints" / "step-00000003"));
    }
  }
}

// A parameter that validation alone meets: the embedding of a token that training does not draw.
TEST_F(WatchTest, NanInValidationStopsToo) {
  {
    IndexedDatasetWriter writer((directory_ / "train").string(), 64);
    std::vector<int32_t> tokens(2000);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(1 + i * i % 63);
    writer.AddDocument(tokens);
    writer.Finish();
  }
  const std::vector<std::string> settings = {"data.train=" + (directory_ / "train").string(),
                                             "model.tied_embedding=false",
                                             "optimizer.warmup_steps=0"};
  ASSERT_EQ(RunEyrie(0, WithSettings(Arguments(settings), {"train.stop_after=2"})).code, 0);
  Poison(run_ / "checkpoints" / "step-00000002", "tok.w");
  for (const int ranks : {0, 2}) {
    const ProcessResult result =
        RunEyrie(ranks, WithSettings(Arguments(settings), {"checkpoint.interval=9"}));
    EXPECT_EQ(result.code, 3) << result.err;
    EXPECT_EQ(OnlyLine(result),
              "eyrie: step 10: the validation loss is not finite: training has diverged");
    // The save that was under way is whole, and no measure is lost.
    EXPECT_EQ(RunEyrie(0, {"checkpoint", "verify", run_.string()})
                  .out.rfind((run_ / "checkpoints" / "step-00000009").string(), 0),
              0u);
    EXPECT_EQ(ReadMetrics(run_).back()["step"], 9);
    fs::remove_all(run_ / "checkpoints" / "step-00000009");
  }
}

TEST_F(WatchTest, DivergenceStopsAndKeepsTheCheckpointBefore) {
  ASSERT_EQ(Train(4, {"parallel.tensor=2", "train.stop_after=2"}).code, 0);
  const ProcessResult result = Train(4, {"parallel.tensor=2", "optimizer.learning_rate=1e30",
                                         "checkpoint.resume=newest", "optimizer.warmup_steps=0"});
  EXPECT_EQ(result.code, 3) << result.err;
  ExpectParts(OnlyLine(result),
              {"step 4:", "first not finite: the ", ", in samples ", "data rank "});
  const ProcessResult verified = RunEyrie(0, {"checkpoint", "verify", run_.string()});
  EXPECT_EQ(verified.code, 0) << verified.err;
  const ProcessResult resumed = Train(2, {"train.stop_after=1"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(ReadMetrics(run_).back()["step"], 3);
}

TEST_F(WatchTest, EventFilesAreAChoice) {
  const auto files = [&] {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(run_)) {
      count += entry.path().filename().string().starts_with("events.out.tfevents.");
    }
    return count;
  };
  ASSERT_EQ(Train(0, {"train.stop_after=1", "run.tensorboard=false"}).code, 0);
  EXPECT_EQ(files(), 0);
  ASSERT_EQ(Train(2, {"train.stop_after=1"}).code, 0);
  EXPECT_EQ(files(), 1);
  // Each run has its own; one with nothing left to do has none.
  ASSERT_EQ(Train(2, {"train.steps=3"}).code, 0);
  ASSERT_EQ(Train(2, {"train.steps=3"}).code, 0);
  EXPECT_EQ(files(), 2);
}

// The output of a command on a terminal of its own.
std::string OnTerminal(std::vector<std::string> command) {
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child == 0) {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    std::vector<char*> arguments;
    for (std::string& word : command) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  std::string out;
  char buffer[4096];
  // Reading fails once the last process has closed its end.
  for (ssize_t n; (n = read(terminal, buffer, sizeof buffer)) > 0;) {
    out.append(buffer, static_cast<size_t>(n));
  }
  close(terminal);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << out;
  return out;
}

TEST_F(WatchTest, ProgressFollowsTheTerminal) {
  const auto count = [](const std::string& text, const std::string& part) {
    int n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
    return n;
  };
  const std::string rewrite = "\r\x1b[K";
  const auto settings = [&](const char* name, const char* progress) {
    return std::vector<std::string>{"run.directory=" + (directory_ / name).string(),
                                    "run.log_interval=5", "train.steps=20",
                                    std::string("run.progress=") + progress};
  };
  // One line for every step on a terminal, unless told otherwise.
  const std::string live = OnTerminal(EyrieCommand(0, Arguments(settings("a", "AUTO"))));
  EXPECT_EQ(count(live, rewrite), 20) << live;
  EXPECT_EQ(count(live, "\n"), 1) << live;
  EXPECT_NE(live.find("step 20/20"), std::string::npos);
  const std::string plain = OnTerminal(EyrieCommand(0, Arguments(settings("b", "PLAIN"))));
  EXPECT_EQ(count(plain, rewrite), 0) << plain;
  EXPECT_EQ(count(plain, "\n"), 4) << plain;
  // A rank of mpirun sees a terminal that need not be one.
  const std::string ranks = OnTerminal(EyrieCommand(2, Arguments(settings("c", "AUTO"))));
  EXPECT_EQ(count(ranks, rewrite), 0) << ranks;
  EXPECT_EQ(count(ranks, "\n"), 4) << ranks;

  EXPECT_EQ(count(Train(0, settings("d", "AUTO")).out, "\n"), 4);
  EXPECT_EQ(count(Train(2, settings("e", "LIVE")).out, rewrite), 20);
}

}  // namespace
}  // namespace eyrie
