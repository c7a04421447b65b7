// Which GPU a rank takes, and ranks that cannot have one.
#include "tests/support/training_test.h"

namespace eyrie {
namespace {

using CudaDevicesTest = TrainingTest;

// What CUDA shows a rank; "-1": nothing.
std::vector<std::string> Seeing(const std::string& gpus) {
  return {"-x", "CUDA_VISIBLE_DEVICES=" + gpus};
}

// As where the driver of one machine is broken: not a job that computes on a GPU here and on a CPU
// there, and no hang.
TEST_F(CudaDevicesTest, AllRanksHaveAGpuOrNone) {
  ExpectBadInput(RunCommand(EyrieCommand({Seeing("0"), Seeing("-1")}, Arguments({}))),
                 {"run.device: ", " has no GPU that CUDA can use, but others have"});
}

TEST_F(CudaDevicesTest, AGpuServesOneRank) {
  ExpectBadInput(RunCommand(EyrieCommand({Seeing("0"), Seeing("0")}, Arguments({}))),
                 {"run.device: 2 ranks on a node with 1 GPU; a GPU serves one rank"});
}

}  // namespace
}  // namespace eyrie
