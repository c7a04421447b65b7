// Checkpoints from a GPU.
#include <gtest/gtest.h>

#include "tests/equality/layouts.h"

namespace eyrie {
namespace {

class CudaCheckpointTest : public LayoutsTest {};

TEST_F(CudaCheckpointTest, TheSameHoweverItIsSaved) {
  const auto train = [&](const std::string& name, const std::string& asynchronous) {
    Train(name, kOne, {"run.device=cuda", "checkpoint.asynchronous=" + asynchronous});
    return directory_ / name / "checkpoints" / "step-00000020";
  };
  const std::filesystem::path later = train("later", "true"), at_once = train("at-once", "false");
  int shards = 0;
  for (const auto& entry : std::filesystem::directory_iterator(later)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++shards;
    EXPECT_EQ(ReadFile(entry.path()), ReadFile(at_once / entry.path().filename())) << entry.path();
  }
  EXPECT_GT(shards, 0);
  const ProcessResult verified = RunEyrie(0, {"checkpoint", "verify", at_once.string()});
  EXPECT_EQ(verified.code, 0) << verified.err;
}

}  // namespace
}  // namespace eyrie
