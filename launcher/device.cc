#include "launcher/device.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/device.h"
#include "launcher/agree.h"
#include "launcher/host_name.h"
#include "launcher/node_memory.h"
#include "parallel/nccl_communicator.h"

namespace eyrie {

Device DeviceOf(const config::Config& config) {
  switch (config.run().device()) {
    case config::RunConfig::cpu: return Device::kCpu;
    case config::RunConfig::cuda: return Device::kCuda;
    case config::RunConfig::auto_: break;
  }
  return cuda::DeviceCount() > 0 ? Device::kCuda : Device::kCpu;
}

Precision PrecisionOf(const config::Config& config, Device device) {
  const auto wanted = config.train().precision();
  const bool mixed = wanted == config::TrainConfig::MIXED ||
                     (wanted == config::TrainConfig::AUTO && device == Device::kCuda);
  Precision precision = mixed ? Precision::Mixed() : Precision(DType::kF32);
  if (config.optimizer().moments() == config::OptimizerConfig::BFLOAT16) {
    precision.moments = DType::kBF16;
  }
  return precision;
}

Precision PrecisionOf(const config::Config& config) {
  return PrecisionOf(config, DeviceOf(config));
}

void ValidateOn(const config::Config& config, Device device, ConfigErrors& errors) {
  if (device != Device::kCpu) {
    ValidateModelOnGpu(config.model(), PrecisionOf(config, device).activations, errors);
    constexpr int64_t kMostSequences = 65535;  // blocks along y and z of a CUDA grid
    if (const int64_t sequences = config.train().micro_batch_size(); sequences > kMostSequences) {
      errors.Add("train.micro_batch_size = ", sequences, "; GPUs take at most ", kMostSequences);
    }
    return;
  }
  if (config.train().precision() == config::TrainConfig::MIXED) {
    errors.Add("train.precision: the CPU backend computes in FLOAT32 alone");
  }
  if (config.optimizer().moments() != config::OptimizerConfig::FLOAT32) {
    errors.Add("optimizer.moments: the CPU backend keeps them in FLOAT32 alone");
  }
}

void ValidateDevice(const config::Config& config, ConfigErrors& errors) {
  if (config.run().device() == config::RunConfig::cuda) {
    if (!kCudaBuild) {
      errors.Add("run.device: this build has no CUDA backend");
    } else if (cuda::DeviceCount() == 0) {
      errors.Add("run.device: this machine has no GPU that CUDA can use");
    }
  }
  ValidateOn(config, DeviceOf(config), errors);
}

double AvailableMemory(Device device, int ranks_on_node) {
  if (device == Device::kCuda) return static_cast<double>(cuda::FreeMemory());
  return NodeMemory() / ranks_on_node;
}

namespace {

// The GPU of this rank's number on its node; or the only one it sees, as of launchers that show
// each rank its own.
void SelectGpu(Communicator& world) {
  const auto node = world.SplitNode();
  const int ranks = node->size(), gpus = cuda::DeviceCount();
  const int index = gpus == 1 ? 0 : node->rank();
  cuda::DeviceId id{};
  static_assert(sizeof(id) % sizeof(int32_t) == 0);
  constexpr int64_t kWords = sizeof(id) / sizeof(int32_t);
  std::vector<cuda::DeviceId> ids(static_cast<size_t>(ranks));
  Collectively(world, [&] {
    if (index < gpus) id = cuda::IdOf(index);
  });
  node->AllGather(Tensor{&id, DType::kI32, Device::kCpu, {kWords}},
                  Tensor{ids.data(), DType::kI32, Device::kCpu, {ranks * kWords}})
      .Wait();
  Collectively(world, [&] {
    if (index >= gpus || std::count(ids.begin(), ids.end(), id) > 1) {
      ThrowBadInput("run.device: ", ranks, " ranks on a node with ", gpus,
                    gpus == 1 ? " GPU" : " GPUs", "; a GPU serves one rank");
    }
    cuda::SelectDevice(index);
  });
}

}  // namespace

std::unique_ptr<Communicator> UseDevice(const config::Config& config,
                                        std::unique_ptr<Communicator> world) {
  const bool gpu = DeviceOf(config) == Device::kCuda;
  const bool any_gpu = AllReduceValue(*world, gpu ? 1 : 0, ReduceOp::kMax) != 0;
  Collectively(*world, [&] {
    if (gpu == any_gpu) return;
    ThrowBadInput("run.device: ", HostName(), " has no GPU that CUDA can use, but others have");
  });
  if (!any_gpu) return world;
  SelectGpu(*world);
  if constexpr (kCudaBuild) {
    return MakeNcclCommunicator(std::move(world), config.run().timeout_seconds());
  }
  return world;
}

}  // namespace eyrie
