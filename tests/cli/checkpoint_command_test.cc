// `eyrie checkpoint`, on a checkpoint of a real model.
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "launcher/config.h"
#include "layers/model.h"
#include "tests/launcher/checkpoint_util.h"
#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class CheckpointCommandTest : public CheckpointTest {
 protected:
  CheckpointCommandTest() {
    config_ = ConfigFor({2, 1, 2});
    config::ModelConfig& model = *config_.mutable_model();
    model.set_vocab_size(32);
    model.set_depth(2);
    for (const char* entry : {"recurrent+geglu", "local_attention+geglu"}) model.add_pattern(entry);
    model.mutable_recurrent()->set_width(16);
    model.mutable_recurrent()->set_gate_blocks(4);
    model.mutable_attention()->set_heads(4);
    model.mutable_attention()->set_head_width(4);
    model.mutable_mlp()->set_width(16);
    Resolve(config_, 4);
    const Model made(model, 2);
    const Outcome outcome = OnMesh({2, 1, 2}, [&](const Mesh& mesh) {
      TestRank rank(made.params(), mesh);
      rank.Fill(1);
      SaveCheckpoint(checkpoints_, config_, mesh, rank.params, rank.groups(), PositionAt(12));
    });
    EXPECT_EQ(outcome.codes, (std::vector<int>{0, 0, 0, 0})) << outcome.message;
    parameters_ = made.params().TotalElements();
  }
  static ProcessResult Run(const std::string& command) {
    std::istringstream words(command);
    return RunEyrie(0, {std::istream_iterator<std::string>(words), {}});
  }
  // What a command that goes well prints.
  static std::string Output(const std::string& command) {
    const ProcessResult result = Run(command);
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.err, "");
    return result.out;
  }
  config::Config config_;
  int64_t parameters_ = 0;
};

TEST_F(CheckpointCommandTest, InspectShowsARunsNewestCheckpoint) {
  const std::string text = Output("checkpoint inspect " + Path("run"));
  for (const std::string& part :
       {std::string("step-00000012\n"), std::string("step        12\n"),
        std::string("tokens      6144\n"), std::string("data 2 x sequence 1 x tensor 2"),
        StrCat("parameters  ", parameters_, "\n"), std::string("recurrent+geglu"),
        std::string("adamw.v/"), std::string("2 pieces along axis 0"),
        std::string("model-00003-of-00004.safetensors")}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  fs::remove(checkpoints_ / "step-00000012" / ShardName(1, 4));
  EXPECT_NE(Output("checkpoint inspect " + Path("run")).find("MISSING"), std::string::npos);
}

TEST_F(CheckpointCommandTest, VerifySaysGood) {
  const fs::path checkpoint = checkpoints_ / "step-00000012";
  size_t bytes = 0;
  for (const auto& [name, content] : Files(checkpoint)) bytes += content.size();
  EXPECT_EQ(Output("checkpoint verify " + Path("run")),
            StrCat(checkpoint.string(), ": 5 files, ", ReadManifest(checkpoint).tensor_size(),
                   " tensors, ", bytes, " bytes: good\n"));
}

TEST_F(CheckpointCommandTest, ReshardChangesTheLayout) {
  const std::string out = Path("resharded");
  Output("checkpoint reshard " + Path("run") + " --output " + out +
         " --set parallel.tensor=4 --set parallel.data=0");
  VerifyCheckpoint(out);
  const config::Manifest manifest = ReadManifest(FindCheckpoint(out));
  EXPECT_EQ(manifest.config().parallel().tensor(), 4);
  EXPECT_EQ(manifest.config().parallel().data(), 1);
  EXPECT_EQ(manifest.file_size(), 4);
  config::Config config = manifest.config();
  *config.mutable_parallel() = config_.parallel();
  EXPECT_EQ(ToText(config), ToText(config_));
  // Back again.
  const std::string back = Path("back");
  Output("checkpoint reshard " + out + " --set parallel.tensor=2 --set parallel.data=2 --output " +
         back);
  EXPECT_EQ(Files(back), Files(checkpoints_ / "step-00000012"));
}

// A checkpoint may have more shards than a process usually opens files.
TEST_F(CheckpointCommandTest, ReadsMoreShardsThanFilesAreAllowedAtFirst) {
  const std::string out = Path("many");
  Output("checkpoint reshard " + Path("run") + " --output " + out +
         " --set parallel.tensor=2 --set parallel.data=8 --set parallel.zero=OPTIMIZER_STATE");
  const ProcessResult result = RunCommand(
      {"bash", "-c", "ulimit -Sn 12; exec \"$0\" checkpoint verify \"$1\"", EyrieBinary(), out});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(CheckpointCommandTest, ReshardRefusesImpossibleLayouts) {
  const std::string command = "checkpoint reshard " + Path("run") + " --output " + Path("out");
  for (const auto& [setting, named] :
       std::map<std::string, std::string>{{"parallel.tensor=3", "parallel.tensor"},
                                          {"parallel.tensor=0", "parallel"},
                                          {"parallel.data=-1", "parallel"},
                                          {"parallel.tensor=2000000000", "parallel"},
                                          {"parallel.sequence=0", "parallel"},
                                          {"model.width=8", "model.width"},
                                          {"parallel.none=8", "none"}}) {
    ExpectRefused(Run(command + " --set " + setting), {named});
    EXPECT_FALSE(fs::exists(Path("out")));
  }
}

}  // namespace
}  // namespace eyrie
