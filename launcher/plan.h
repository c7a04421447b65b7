// `eyrie plan`: what a run would take and how fast it would be, without running it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "configs/schema/config.pb.h"
#include "configs/schema/hardware.pb.h"
#include "launcher/measure.h"

namespace eyrie {

// Seconds of one step, and what they are made of. Kernels follow one another, and so does
// communication, except for what kernels hide.
struct StepTime {
  std::map<std::string, double> by_kernel;  // of each class, and their sum
  double kernels = 0.0;
  // Bytes over the axis's bandwidth and messages times its latency: all of it, and what it adds to
  // the step: what is not hidden, and what the rest of it takes from the kernels that hide it.
  double tensor = 0.0, sequence = 0.0, replicas = 0.0, world = 0.0;
  double exposed = 0.0;

  double total() const { return kernels + exposed; }
};

struct Plan {
  MeshShape shape;
  int64_t parameters = 0;        // of the whole model
  int64_t local_parameters = 0;  // of a tensor rank
  int64_t microbatches = 0;      // of a rank in a step
  int64_t tokens = 0;            // of all ranks in a step

  int rank = 0;  // the one that needs the most memory
  MemoryUse memory;
  // Activations under each train.recompute.
  int64_t activations_nothing = 0, activations_selective = 0, activations_blocks = 0;
  MeshTraffic traffic;  // a step of that rank

  std::map<std::string, KernelWork> kernels;  // likewise, by class
  // Of one rank in a step: what the model needs, and what its kernels compute, some of it twice.
  double model_flops = 0.0, flops = 0.0;
  double memory_traffic = 0.0;  // bytes
  StepTime time;
  double tokens_per_second = 0.0;
  double utilisation = 0.0;  // model FLOPs over peak FLOPs
};

// `config` is resolved and its layout valid.
Plan MakePlan(const config::Config& config, const config::Hardware& hardware);

}  // namespace eyrie
