// Training goes on while a checkpoint is written. The disk is a gate that the test opens.
#include "launcher/checkpoint_writer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <nlohmann/json.hpp>

#include "launcher/config.h"
#include "launcher/indexed_dataset.h"
#include "launcher/trainer.h"
#include "parallel/communicator_wrapper.h"
#include "tests/launcher/checkpoint_util.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;
using Progress = CheckpointWriter::Progress;

// A disk that takes nothing until it is opened.
class Gate {
 public:
  void Open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    opened_.notify_all();
  }
  CheckpointWriter::ShardSink Sink() {
    return [this](const fs::path& directory, size_t index, const PieceSource& source,
                  CheckpointPlan& plan) {
      {
        std::unique_lock lock(mutex_);
        opened_.wait(lock, [&] { return open_; });
      }
      WriteShard(directory, index, source, plan);
    };
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
};

// The largest progress of all ranks.
Progress Agreed(const Mesh& mesh, const CheckpointWriter& writer) {
  return static_cast<Progress>(
      AllReduceValue(mesh.world(), static_cast<double>(writer.progress()), ReduceOp::kMax));
}

using CheckpointWriterTest = CheckpointTest;

TEST_F(CheckpointWriterTest, WhatIsSavedIsWhatWasThereWhenTheSaveBegan) {
  const MeshShape shape{2, 1, 2};
  const config::Config config = ConfigFor(shape);
  Gate gate;
  const Outcome outcome = OnMesh(shape, [&](const Mesh& mesh) {
    TestRank rank(table_, mesh);
    rank.Fill(7);
    // One disk is slow.
    CheckpointWriter writer(checkpoints_, config, mesh, rank.params,
                            mesh.world().rank() == 2 ? gate.Sink() : WriteShard);
    writer.Begin(rank.groups(), PositionAt(1), /*asynchronous=*/true);
    // Steps that change everything and communicate, while no byte of that rank's is written.
    for (uint64_t step = 2; step < 6; ++step) {
      rank.Fill(step + 100);
      EXPECT_EQ(Agreed(mesh, writer), Progress::kWriting);
      EXPECT_TRUE(writer.under_way());
    }
    EXPECT_EQ(NewestCheckpoint(checkpoints_), std::nullopt);
    mesh.world().Barrier();
    gate.Open();
    writer.Finish();
    EXPECT_FALSE(writer.under_way());
    EXPECT_EQ(writer.progress(), Progress::kDone);
    // The next save uses the same memory.
    rank.Fill(9);
    writer.Begin(rank.groups(), PositionAt(2), /*asynchronous=*/true);
    rank.Fill(10);
    while (Agreed(mesh, writer) == Progress::kWriting) std::this_thread::yield();
    writer.Finish();
  });
  EXPECT_EQ(outcome.codes, (std::vector<int>{0, 0, 0, 0})) << outcome.message;
  EXPECT_EQ(Names(), (std::vector<std::string>{"step-00000001", "step-00000002"}));
  const fs::path first = checkpoints_ / CheckpointName(1);
  VerifyCheckpoint(first);
  ExpectLoads(first, {}, 1, 7);
  ExpectLoads(checkpoints_ / CheckpointName(2), {1, 1, 4}, 2, 9);
  // Byte for byte what a save that waits writes.
  const auto files = Files(first);
  EXPECT_EQ(Files(Save(shape, 1)), files);
}

TEST_F(CheckpointWriterTest, AFailureReachesEveryRankAndTheStagedFolderGoes) {
  const MeshShape shape{3, 1, 1};
  Save(shape, 1);
  const auto before = Files(checkpoints_ / CheckpointName(1));
  const config::Config config = ConfigFor(shape);
  for (const bool asynchronous : {true, false}) {
    const Outcome outcome = OnMesh(shape, [&](const Mesh& mesh) {
      TestRank rank(table_, mesh);
      const bool breaks = mesh.world().rank() == 1;
      CheckpointWriter writer(checkpoints_, config, mesh, rank.params,
                              [&](const fs::path& directory, size_t index,
                                  const PieceSource& source, CheckpointPlan& plan) {
                                if (breaks) ThrowFailure("disk 1: No space left on device");
                                WriteShard(directory, index, source, plan);
                              });
      writer.Begin(rank.groups(), PositionAt(2), asynchronous);
      while (Agreed(mesh, writer) == Progress::kWriting) std::this_thread::yield();
      EXPECT_EQ(Agreed(mesh, writer), Progress::kFailed);
      EXPECT_EQ(writer.progress() == Progress::kFailed, breaks);
      writer.Finish();
    });
    EXPECT_EQ(outcome.codes, (std::vector<int>{3, 3, 3}));
    EXPECT_EQ(outcome.messages, 1);
    EXPECT_EQ(outcome.message, "disk 1: No space left on device");
    EXPECT_EQ(Names(), (std::vector<std::string>{"step-00000001"}));
    EXPECT_EQ(Files(checkpoints_ / CheckpointName(1)), before);
  }
}

TEST_F(CheckpointWriterTest, TheTokenizerMayGoWhileTheRunGoesOn) {
  const MeshShape shape{2, 1, 1};
  config::Config config = ConfigFor(shape);
  config.mutable_data()->set_tokenizer("sentencepiece:" + Path("words.model"));
  const std::string contents = "pieces\n";
  std::ofstream(Path("words.model")) << contents;
  Outcome outcome = OnMesh(shape, [&](const Mesh& mesh) {
    TestRank rank(table_, mesh);
    rank.Fill(7);
    CheckpointWriter writer(checkpoints_, config, mesh, rank.params);
    if (mesh.is_root()) fs::remove(Path("words.model"));
    for (const int64_t step : {1, 2}) {
      writer.Begin(rank.groups(), PositionAt(step), /*asynchronous=*/false);
      writer.Finish();
    }
  });
  EXPECT_EQ(outcome.codes, (std::vector<int>{0, 0})) << outcome.message;
  for (const int64_t step : {1, 2}) {
    const fs::path saved = checkpoints_ / CheckpointName(step);
    VerifyCheckpoint(saved);
    EXPECT_EQ(Files(saved).at(kTokenizerName), contents);
  }

  outcome = OnMesh(shape, [&](const Mesh& mesh) {
    TestRank rank(table_, mesh);
    CheckpointWriter(checkpoints_, config, mesh, rank.params);
  });
  EXPECT_EQ(outcome.codes, (std::vector<int>{2, 2}));
  EXPECT_NE(outcome.message.find("words.model"), std::string::npos) << outcome.message;
}

// Ranks wait for one another for run.timeout_seconds only, and disks may stall for longer: those
// that are done keep meeting those that write.
TEST_F(CheckpointWriterTest, RanksMeetWhileADiskIsBusy) {
  class Counting final : public CommunicatorWrapper {
   public:
    Counting(Communicator& inner, std::atomic<int>& count)
        : CommunicatorWrapper(inner), count_(count) {}

   private:
    Event Started(const Operation& /*operation*/, Event event) override {
      ++count_;
      return event;
    }
    std::atomic<int>& count_;
  };
  const MeshShape shape{1, 1, 2};
  const config::Config config = ConfigFor(shape);
  Gate gate;
  std::atomic<int> meetings = 0;
  const Outcome outcome = OnMesh(shape, [&](const Mesh& plain) {
    const Mesh mesh(plain, [&](const char* /*axis*/, Communicator& inner) {
      return std::make_unique<Counting>(inner, meetings);
    });
    TestRank rank(table_, mesh);
    // The second rank's disk alone is busy.
    const bool busy = mesh.world().rank() == 1;
    CheckpointWriter writer(checkpoints_, config, mesh, rank.params,
                            busy ? gate.Sink() : WriteShard);
    writer.Begin(rank.groups(), PositionAt(1), /*asynchronous=*/true);
    const int before = meetings;
    std::jthread opener([&, busy] {
      if (!busy) return;
      const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
      while (meetings < before + 20 && std::chrono::steady_clock::now() < give_up) {
        std::this_thread::yield();
      }
      EXPECT_GE(meetings, before + 20);
      gate.Open();
    });
    writer.Finish();
  });
  EXPECT_EQ(outcome.codes, (std::vector<int>{0, 0}));
  EXPECT_EQ(Names(), (std::vector<std::string>{"step-00000001"}));
}

TEST_F(CheckpointWriterTest, ASaveThatIsDroppedLeavesNothing) {
  const Mesh mesh;
  const config::Config config = ConfigFor({});
  Gate gate;
  {
    TestRank rank(table_, mesh);
    CheckpointWriter writer(checkpoints_, config, mesh, rank.params, gate.Sink());
    writer.Begin(rank.groups(), PositionAt(1), /*asynchronous=*/true);
    EXPECT_EQ(Names().size(), 1u);  // the staged folder
    gate.Open();
  }
  EXPECT_EQ(Names(), std::vector<std::string>{});
}

// The trainer itself: its disk opens once it has logged two steps after the one it saves.
TEST_F(CheckpointWriterTest, TheTrainerTrainsWhileItsDiskIsBusy) {
  {
    IndexedDatasetWriter data(Path("data"), 32);
    data.AddDocument(std::vector<int32_t>(400, 3));
    data.Finish();
  }
  config::Config config;
  config::ModelConfig& model = *config.mutable_model();
  model.set_vocab_size(32);
  model.set_width(16);
  model.set_depth(1);
  model.add_pattern("recurrent+geglu");
  model.mutable_recurrent()->set_width(16);
  model.mutable_recurrent()->set_gate_blocks(4);
  model.mutable_mlp()->set_width(16);
  ApplySettings(
      {"train.steps=8", "train.sequence_length=16", "train.global_batch_size=2",
       "train.micro_batch_size=2", "optimizer.learning_rate=1e-3", "data.train=" + Path("data"),
       "run.directory=" + Path("run"), "run.tensorboard=false", "checkpoint.interval=4"},
      config);
  Resolve(config, 1);
  ValidateForTraining(config);
  const Mesh mesh;

  const auto logged = [&] {
    int64_t step = 0;
    std::ifstream in(Path("run/metrics.jsonl"));
    for (std::string line; std::getline(in, line);) {
      const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (object.is_object()) step = object["step"];
    }
    return step;
  };
  int64_t seen = 0;
  Trainer trainer(config, mesh, /*trace=*/nullptr,
                  [&](const fs::path& directory, size_t index, const PieceSource& source,
                      CheckpointPlan& plan) {
                    // A trainer that waited for its disk would never get there.
                    const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
                    while (plan.manifest.step() == 4 && (seen = logged()) < 6 &&
                           std::chrono::steady_clock::now() < give_up) {
                      std::this_thread::yield();
                    }
                    WriteShard(directory, index, source, plan);
                  });
  testing::internal::CaptureStdout();
  const ExitCode code = trainer.Run();
  testing::internal::GetCapturedStdout();
  EXPECT_EQ(code, ExitCode::kOk);
  EXPECT_GE(seen, 6);
  EXPECT_EQ(Names(), (std::vector<std::string>{"step-00000004", "step-00000008"}));

  // The same run, waiting for its disk, saves the same bits.
  const auto files = Files(checkpoints_ / CheckpointName(4));
  config.mutable_run()->set_directory(Path("waiting"));
  config.mutable_checkpoint()->set_asynchronous(false);
  testing::internal::CaptureStdout();
  EXPECT_EQ(Trainer(config, mesh).Run(), ExitCode::kOk);
  testing::internal::GetCapturedStdout();
  for (const auto& [name, content] : Files(Path("waiting/checkpoints/step-00000004"))) {
    if (name == kManifestName) continue;  // its configuration differs
    EXPECT_EQ(files.at(name), content) << name;
  }
}

}  // namespace
}  // namespace eyrie
