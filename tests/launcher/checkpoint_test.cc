// Saving, loading and resharding checkpoints, with ranks as threads.
#include "launcher/checkpoint.h"

#include <gtest/gtest.h>

#include <CLI/App.hpp>

#include "core/safetensors.h"
#include "core/tensor_math.h"
#include "launcher/checkpoint_command.h"
#include "launcher/config.h"
#include "launcher/reshard.h"
#include "layers/model.h"
#include "tests/launcher/checkpoint_util.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

const MeshShape kLayouts[] = {{1, 1, 1}, {1, 1, 4}, {2, 1, 2}, {3, 1, 1}, {2, 2, 1}, {5, 2, 2}};

TEST_F(CheckpointTest, EveryLayoutLoadsEveryLayout) {
  int64_t step = 0;
  for (const MeshShape saved : kLayouts) {
    const fs::path checkpoint = Save(saved, ++step);
    VerifyCheckpoint(checkpoint);
    for (const MeshShape loaded : kLayouts) {
      SCOPED_TRACE(StrCat(saved.data, "x", saved.sequence, "x", saved.tensor, " to ", loaded.data,
                          "x", loaded.sequence, "x", loaded.tensor));
      ExpectLoads(checkpoint, loaded, step);
    }
  }
}

TEST_F(CheckpointTest, StoresWhatTheStoreHolds) {
  const fs::path checkpoint = Save({2, 1, 2}, 3, 7, DType::kF64);
  EXPECT_EQ(ReadManifest(checkpoint).tensor(0).dtype(), "F64");
  ExpectLoads(checkpoint, {1, 1, 4}, 3, 7, DType::kF64);
  EXPECT_NE(RefusedLoad(checkpoint).find("embedding.w is F64, not F32"), std::string::npos);
}

TEST_F(CheckpointTest, EveryElementIsWrittenOnceAndTheWorkIsShared) {
  const fs::path checkpoint = Save({2, 1, 2}, 1);
  const auto files = Files(checkpoint);
  EXPECT_EQ(files.size(), 5u);
  int64_t elements = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const std::string name = ShardName(rank, 4);
    ASSERT_TRUE(files.contains(name)) << name;
    const SafetensorsFile shard(checkpoint / name);
    EXPECT_FALSE(shard.entries().empty());
    for (const auto& entry : shard.entries()) elements += static_cast<int64_t>(entry.bytes / 4);
  }
  EXPECT_EQ(elements, 3 * table_.TotalElements());
}

TEST_F(CheckpointTest, RanksWithNothingToWriteMakeNoFile) {
  const fs::path checkpoint = Save({9, 1, 1}, 1);  // six parameters and two more moments in turn
  EXPECT_EQ(ReadManifest(checkpoint).file_size(), 8);
  EXPECT_TRUE(fs::exists(checkpoint / "model-00007-of-00008.safetensors"));
  ExpectLoads(checkpoint, {}, 1);
}

TEST_F(CheckpointTest, InferenceLoadsTheParametersAlone) {
  const fs::path checkpoint = Save({1, 1, 2}, 1);
  const Mesh mesh;
  TestRank loaded(table_, mesh), expected(table_, mesh);
  expected.Fill(7);
  LoadParameters(checkpoint, ReadManifest(checkpoint), loaded.params);
  EXPECT_TRUE(SameBits(loaded.params.flat_values(), expected.params.flat_values()));

  ParamStore mixed(table_, mesh, Precision::Mixed(), /*with_gradients=*/false);
  LoadParameters(checkpoint, ReadManifest(checkpoint), mixed);
  for (ParamId id = 0; id < static_cast<ParamId>(table_.specs().size()); ++id) {
    const Tensor value = mixed.value(id), exact = expected.params.value(id);
    const OwnedTensor converted(value.dtype, value.shape);
    Convert(exact, converted.tensor);
    EXPECT_TRUE(SameBits(value, converted.tensor)) << table_.spec(id).name;
    EXPECT_EQ(SameBits(value, exact), table_.spec(id).full_precision);
  }
}

TEST_F(CheckpointTest, TheSameStepIsReplaced) {
  Save({1, 1, 4}, 5, 1);
  const fs::path checkpoint = Save({1, 1, 2}, 5, 2);
  EXPECT_EQ(Names(), std::vector<std::string>{"step-00000005"});
  EXPECT_EQ(Files(checkpoint).size(), 3u);
  VerifyCheckpoint(checkpoint);
  ExpectLoads(checkpoint, {1, 1, 4}, 5, 2);
}

TEST_F(CheckpointTest, CarriesTheTokenizer) {
  const std::string model = Write("spm.model", "the model");
  config::Config config = ConfigFor({});
  config.mutable_data()->set_tokenizer("sentencepiece:" + model);
  EXPECT_EQ(TrySave({1, 1, 2}, 1, 7, config).codes, (std::vector<int>{0, 0}));
  const fs::path checkpoint = checkpoints_ / "step-00000001";
  EXPECT_EQ(Files(checkpoint).at("tokenizer.model"), "the model");
  EXPECT_EQ(TokenizerOf(checkpoint, ReadManifest(checkpoint)),
            "sentencepiece:" + (checkpoint / "tokenizer.model").string());
  VerifyCheckpoint(checkpoint);
  // Resharding takes it along.
  const fs::path output = Path("out");
  ReshardCheckpoint(checkpoint, output, ConfigFor({1, 1, 4}).parallel(), table_);
  EXPECT_EQ(Files(output).at("tokenizer.model"), "the model");
  VerifyCheckpoint(output);
  // A lost one stops the save before anything is in place.
  fs::remove(model);
  const Outcome outcome = TrySave({1, 1, 2}, 2, 7, config);
  EXPECT_EQ(outcome.codes, (std::vector<int>{2, 2}));
  EXPECT_EQ(outcome.messages, 1);
  EXPECT_TRUE(outcome.message.starts_with(model)) << outcome.message;
  EXPECT_EQ(Names(), std::vector<std::string>{"step-00000001"});
}

TEST_F(CheckpointTest, ReshardingWritesWhatThatLayoutWouldHave) {
  const fs::path source = Save({1, 1, 4}, 1);
  for (const MeshShape shape : kLayouts) {
    const fs::path output = Path(StrCat("to-", shape.data, shape.sequence, shape.tensor));
    ReshardCheckpoint(source, output, ConfigFor(shape).parallel(), table_);
    VerifyCheckpoint(output);
    ExpectLoads(output, {1, 1, 2}, 1);
    EXPECT_EQ(Files(output), Files(Save(shape, 1)));
    Save({1, 1, 4}, 1);
  }
}

TEST_F(CheckpointTest, AChainOfReshardingsChangesNothing) {
  const fs::path start = Save({}, 9);
  fs::path last = start;
  for (const int tensor : {4, 2, 1}) {
    const fs::path next = Path(StrCat("tensor-", tensor, "/"));  // a slash at the end is fine
    ReshardCheckpoint(last, next, ConfigFor({1, 1, tensor}).parallel(), table_);
    last = next;
  }
  EXPECT_EQ(Files(last), Files(start));
  EXPECT_EQ(FindCheckpoint(last), last);
}

TEST_F(CheckpointTest, ReshardingNeverOverwritesAndLeavesNothingBehind) {
  const fs::path source = Save({}, 1);
  const auto parallel = ConfigFor({1, 1, 2}).parallel();
  fs::create_directory(Path("there"));
  const std::string message =
      BadInput([&] { ReshardCheckpoint(source, Path("there"), parallel, table_); });
  EXPECT_TRUE(message.starts_with(Path("there"))) << message;
  // A damaged source is found while the output is half written.
  const fs::path shard = source / ShardName(0, 1);
  fs::resize_file(shard, fs::file_size(shard) - 1);
  const std::string damage =
      BadInput([&] { ReshardCheckpoint(source, Path("parent/out"), parallel, table_); });
  EXPECT_TRUE(damage.starts_with(shard.string())) << damage;
  EXPECT_TRUE(fs::is_empty(Path("parent")));
}

// The commands, on a checkpoint of a real model.
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
  // What a command prints; errors are thrown.
  static std::string Output(const std::string& command) {
    CLI::App app;
    AddCheckpointCommand(app);
    testing::internal::CaptureStdout();
    try {
      app.parse(command);
    } catch (...) {
      testing::internal::GetCapturedStdout();
      throw;
    }
    return testing::internal::GetCapturedStdout();
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
    const std::string message = BadInput([&] { Output(command + " --set " + setting); });
    EXPECT_NE(message.find(named), std::string::npos) << message;
    EXPECT_FALSE(fs::exists(Path("out")));
  }
}

// As an imported model is: parameters alone.
TEST_F(CheckpointTest, MomentsMayBeAbsentAtStepZeroOnly) {
  for (const int64_t step : {0, 5}) {
    OnMesh({}, [&](const Mesh& mesh) {
      TestRank rank(table_, mesh);
      rank.Fill(7);
      SaveCheckpoint(checkpoints_, ConfigFor({}), mesh, rank.params, {rank.groups().front()},
                     PositionAt(step));
    });
  }
  EXPECT_NE(RefusedLoad(checkpoints_ / CheckpointName(5)).find("adamw.m/embedding.w is missing"),
            std::string::npos);
  const Mesh mesh;
  TestRank loaded(table_, mesh), expected(table_, mesh);
  loaded.Fill(8);
  expected.Fill(7);
  FillZero(expected.m.flat_values());
  FillZero(expected.v.flat_values());
  const fs::path checkpoint = checkpoints_ / CheckpointName(0);
  LoadCheckpoint(checkpoint, ReadManifest(checkpoint), loaded.params, loaded.groups());
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(SameBits(loaded.groups()[i].flat, expected.groups()[i].flat)) << i;
  }
}

}  // namespace
}  // namespace eyrie
