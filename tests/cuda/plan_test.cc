// What a step on a GPU is measured to take without one, against what a run takes.
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/trainer.h"
#include "tests/cuda/cuda_test_util.h"
#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

TEST(CudaPlan, MeasuresWhatARunTakes) {
  const TestDirectory directory;
  WriteTokenFile((directory / "data").string(), 200, 64, 1);
  int runs = 0;
  for (const MixerEntry& entry : MixerRegistry()) {
    for (const char* recompute : {"NOTHING", "SELECTIVE", "BLOCKS"}) {
      for (const char* precision : {"MIXED", "FLOAT32"}) {
        SCOPED_TRACE(StrCat(entry.name, " ", recompute, " ", precision));
        const std::filesystem::path run = directory / std::to_string(++runs);
        config::Config config = LoadConfig(
            WriteText(directory / "plan.textproto", SmallTrainingConfig(directory / "data", run)));
        ApplySettings({StrCat("model.pattern=", entry.name), StrCat("train.recompute=", recompute),
                       StrCat("train.precision=", precision), "train.sequence_length=256",
                       "train.stop_after=2", "run.device=cuda",
                       // Heads of a multiple of 16 channels.
                       "model.mlstm.width=128", "model.mlstm.key_width=64"},
                      config);
        Resolve(config, 1);
        ValidateForTraining(config);
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

}  // namespace
}  // namespace eyrie
