// What a step on a GPU is measured to take without one, against what a run takes.
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/trainer.h"
#include "tests/cuda/cuda_test_util.h"
#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

// A small model's configuration with these settings, ready to be trained.
config::Config ConfigOf(const TestDirectory& directory, const std::string& run,
                        const std::vector<std::string>& settings) {
  config::Config config = LoadConfig(WriteText(
      directory / "plan.textproto", SmallTrainingConfig(directory / "data", directory / run)));
  ApplySettings(settings, config);
  Resolve(config, 1);
  ValidateForTraining(config);
  return config;
}

TEST(CudaPlan, MeasuresWhatARunTakes) {
  const TestDirectory directory;
  WriteTokenFile((directory / "data").string(), 200, 64, 1);
  int runs = 0;
  for (const MixerEntry& entry : MixerRegistry()) {
    for (const char* recompute : {"NOTHING", "SELECTIVE", "BLOCKS"}) {
      for (const char* precision : {"MIXED", "FLOAT32"}) {
        SCOPED_TRACE(StrCat(entry.name, " ", recompute, " ", precision));
        const config::Config config =
            ConfigOf(directory, std::to_string(++runs),
                     {StrCat("model.pattern=", entry.name), StrCat("train.recompute=", recompute),
                      StrCat("train.precision=", precision), "train.sequence_length=256",
                      "train.stop_after=2", "run.device=cuda",
                      // Heads of a multiple of 16 channels.
                      "model.mlstm.width=128", "model.mlstm.key_width=64"});
        const Mesh mesh;
        Trainer trainer(config, mesh);
        EXPECT_EQ(trainer.Run(), ExitCode::kOk);
        const MemoryUse taken = trainer.memory();
        const MemoryUse planned = MeasureStep(config, PrecisionOf(config), Device::kCuda, 0).memory;
        EXPECT_EQ(planned.parameters, taken.parameters);
        EXPECT_EQ(planned.gradients, taken.gradients);
        EXPECT_EQ(planned.masters, taken.masters);
        EXPECT_EQ(planned.moments, taken.moments);
        EXPECT_EQ(planned.activations, taken.activations);
        EXPECT_EQ(planned.buffers, taken.buffers);
      }
    }
  }
}

// Six steps ask the driver for no more memory than one does.
TEST(CudaPlan, StepsAfterTheFirstTakeNoMemory) {
  const TestDirectory directory;
  WriteTokenFile((directory / "data").string(), 200, 64, 1);
  int runs = 0;
  for (const char* setting :
       {"train.recompute=NOTHING", "train.recompute=BLOCKS", "train.chunk_length=16"}) {
    SCOPED_TRACE(setting);
    const auto calls = [&](int steps) {
      const config::Config config =
          ConfigOf(directory, std::to_string(++runs),
                   {setting, StrCat("train.stop_after=", steps), "train.micro_batch_size=2",
                    "train.validation_interval=1", "run.device=cuda"});
      const Mesh mesh;
      Trainer trainer(config, mesh);
      const int64_t before = cuda::MemoryCalls();
      EXPECT_EQ(trainer.Run(), ExitCode::kOk);
      return cuda::MemoryCalls() - before;
    };
    calls(1);  // the process's first
    EXPECT_EQ(calls(6), calls(1));
  }
}

}  // namespace
}  // namespace eyrie
