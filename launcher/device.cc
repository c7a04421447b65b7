#include "launcher/device.h"

#include <utility>

#include "core/device.h"
#include "launcher/agree.h"
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

std::unique_ptr<Communicator> UseDevice(const config::Config& config,
                                        std::unique_ptr<Communicator> world) {
  if (DeviceOf(config) == Device::kCpu) return world;
  const auto node = world->SplitNode();
  const int ranks = node->size();
  Collectively(*world, [&] {
    const int gpus = cuda::DeviceCount();
    if (ranks > gpus) {
      ThrowBadInput("run.device: ", ranks, " ranks on a node with ", gpus,
                    gpus == 1 ? " GPU" : " GPUs", "; a GPU serves one rank");
    }
    cuda::SelectDevice(node->rank());
  });
  if constexpr (kCudaBuild) {
    return MakeNcclCommunicator(std::move(world), config.run().timeout_seconds());
  }
  return world;
}

}  // namespace eyrie
