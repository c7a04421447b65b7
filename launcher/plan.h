// `eyrie plan`: what a run would take and how fast it would be, without running it.
#pragma once

#include <cstdint>

#include "configs/schema/config.pb.h"
#include "configs/schema/hardware.pb.h"
#include "launcher/measure.h"

namespace eyrie {

// Seconds of one step, and what they are made of. Matrix products, memory traffic and communication
// are taken to follow one another, except for communication that work hides.
struct StepTime {
  double products = 0.0;  // FLOPs over what the hardware's products achieve
  double memory = 0.0;    // bytes that elementwise kernels and the optimiser move, over bandwidth
  // Bytes over the axis's bandwidth and messages times its latency: all of it, and of these what is
  // not hidden.
  double tensor = 0.0, sequence = 0.0, replicas = 0.0, world = 0.0;
  double exposed = 0.0;

  double total() const { return products + memory + exposed; }
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

  // Of one rank in a step: what the model needs, and with what is computed twice.
  double model_flops = 0.0, flops = 0.0;
  double memory_traffic = 0.0;  // bytes
  StepTime time;
  double tokens_per_second = 0.0;
  double utilisation = 0.0;  // model FLOPs over peak FLOPs
};

// `config` is resolved and its layout valid.
Plan MakePlan(const config::Config& config, const config::Hardware& hardware);

}  // namespace eyrie
