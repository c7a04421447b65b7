// Saving, loading and resharding checkpoints, with ranks as threads.
#include "launcher/checkpoint.h"

#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "core/tensor_math.h"
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
