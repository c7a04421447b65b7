// What a step is measured to take, without memory and without other ranks, equals what a step of
// the trainer takes on every rank: each kind of memory, and the bytes and messages of each axis.
#include <mutex>

#include "launcher/config.h"
#include "launcher/trainer.h"
#include "tests/equality/layouts.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

struct RankRun {
  MemoryUse memory;
  MeshTraffic traffic;
};

class PlanEqualityTest : public LayoutsTest {
 protected:
  config::Config Load(const std::vector<std::string>& settings, int ranks) {
    config::Config config =
        LoadConfig(WriteText(directory_ / "plan.textproto",
                             SmallTrainingConfig(directory_ / "data", directory_ / "none")));
    config.mutable_train()->set_validation_interval(0);
    config.mutable_run()->set_log_interval(100);
    // How often ranks meet while another thread writes is a matter of time.
    config.mutable_checkpoint()->set_asynchronous(false);
    ApplySettings(settings, config);
    Resolve(config, ranks);
    ValidateForTraining(config);
    return config;
  }

  // Trains for `steps` steps from the start, and saves: by rank.
  std::vector<RankRun> Run(config::Config config, int64_t steps) {
    const MeshShape shape = MeshShapeOf(config.parallel());
    config.mutable_train()->set_stop_after(steps);
    config.mutable_run()->set_directory((directory_ / ("run" + std::to_string(++runs_))).string());
    std::vector<RankRun> ranks(static_cast<size_t>(shape.ranks()));
    RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
      RankRun& mine = ranks[static_cast<size_t>(world->rank())];
      const Mesh mesh(shape, CountingGroups(SplitWorld(shape, std::move(world)), mine.traffic));
      Trainer trainer(config, mesh);
      EXPECT_EQ(trainer.Run(), ExitCode::kOk);
      mine.memory = trainer.memory();
    });
    return ranks;
  }

  void ExpectMeasuredAsRun(const std::vector<std::string>& settings, int ranks) {
    const config::Config config = Load(settings, ranks);
    const std::vector<RankRun> one = Run(config, 1), three = Run(config, 3);
    for (int rank = 0; rank < ranks; ++rank) {
      SCOPED_TRACE("rank " + std::to_string(rank));
      const StepMeasure measured = MeasureStep(config, DType::kF32, Device::kCpu, rank);
      const auto& [memory, traffic] = three[static_cast<size_t>(rank)];
      EXPECT_EQ(measured.memory.parameters, memory.parameters);
      EXPECT_EQ(measured.memory.gradients, memory.gradients);
      EXPECT_EQ(measured.memory.masters, memory.masters);
      EXPECT_EQ(measured.memory.moments, memory.moments);
      EXPECT_EQ(measured.memory.activations, memory.activations);
      EXPECT_EQ(measured.memory.buffers, memory.buffers);

      // Two steps are what three have beyond one.
      const MeshTraffic& first = one[static_cast<size_t>(rank)].traffic;
      const auto expect = [&](const char* axis, Traffic MeshTraffic::*of) {
        EXPECT_DOUBLE_EQ((traffic.*of).bytes - (first.*of).bytes, 2 * (measured.traffic.*of).bytes)
            << axis;
        EXPECT_EQ((traffic.*of).messages - (first.*of).messages,
                  2 * (measured.traffic.*of).messages)
            << axis;
      };
      expect("tensor", &MeshTraffic::tensor);
      expect("sequence", &MeshTraffic::sequence);
      expect("data", &MeshTraffic::data);
      expect("replicas", &MeshTraffic::replicas);
      expect("world", &MeshTraffic::world);
    }
  }

  int runs_ = 0;
};

TEST_F(PlanEqualityTest, OneRank) {
  ExpectMeasuredAsRun({}, 1);
  ExpectMeasuredAsRun({"train.recompute=BLOCKS"}, 1);
  ExpectMeasuredAsRun({"train.recompute=SELECTIVE"}, 1);
  ExpectMeasuredAsRun({"train.chunk_length=10"}, 1);
  ExpectMeasuredAsRun({"train.micro_batch_size=8"}, 1);
}

TEST_F(PlanEqualityTest, EveryAxis) {
  const std::string zero = "parallel.zero=OPTIMIZER_STATE", buckets = "parallel.bucket_bytes=4096";
  ExpectMeasuredAsRun({"parallel.tensor=2"}, 2);
  ExpectMeasuredAsRun({"parallel.data=2"}, 2);
  ExpectMeasuredAsRun({"parallel.data=4", zero, buckets}, 4);
  ExpectMeasuredAsRun({"parallel.sequence=2"}, 2);
  ExpectMeasuredAsRun({"parallel.sequence=2", "parallel.tensor=2", "train.recompute=SELECTIVE"}, 4);
  ExpectMeasuredAsRun({"parallel.sequence=8", "train.recompute=BLOCKS", zero}, 8);
  ExpectMeasuredAsRun({"parallel.tensor=2", "parallel.sequence=2", "parallel.data=2", zero}, 8);
  ExpectMeasuredAsRun({"parallel.tensor=4", "train.chunk_length=16", "train.recompute=BLOCKS"}, 4);
}

TEST_F(PlanEqualityTest, GivenLabels) {
  WriteLabelFile((directory_ / "data").string(), 64, 3);
  const std::string labels = "data.labels=GIVEN";
  ExpectMeasuredAsRun({labels}, 1);
  ExpectMeasuredAsRun({labels, "parallel.data=2"}, 2);
  ExpectMeasuredAsRun({labels, "parallel.tensor=2", "parallel.sequence=2"}, 4);
}

TEST_F(PlanEqualityTest, EveryMixer) {
  for (const MixerEntry& entry : MixerRegistry()) {
    SCOPED_TRACE(entry.name);
    ExpectMeasuredAsRun({"model.pattern=" + entry.name, "parallel.tensor=2"}, 2);
    ExpectMeasuredAsRun({"model.pattern=" + entry.name, "parallel.sequence=4"}, 4);
    ExpectMeasuredAsRun({"model.pattern=" + entry.name, "train.recompute=SELECTIVE"}, 1);
  }
}

}  // namespace
}  // namespace eyrie
